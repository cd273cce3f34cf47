"""Locks between processes: flock, fcntl, open file descriptions, leases."""

import signal
from support import *

F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
RD, WR, UN = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def in_child(function):
    """What `function` says, from another process."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        function()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)


@case
def whole_file_locks():
    put("f")
    a, b = os.open("f", os.O_RDWR), os.open("f", os.O_RDONLY)
    SH, EX, NB, UNL = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN
    for first in [SH, EX]:
        for second in [SH, EX]:
            show("first %d" % first, fcntl.flock, a, first | NB)
            show("second %d" % second, fcntl.flock, b, second | NB)
            in_child(lambda: show("inherited", fcntl.flock, a, EX | NB))
            fcntl.flock(a, UNL)
            show("after unlock", fcntl.flock, b, EX | NB)
            fcntl.flock(b, UNL)
    fcntl.flock(a, EX)
    c = os.dup(a)
    os.close(a)
    show("a copy holds it", fcntl.flock, b, SH | NB)
    os.close(c)
    show("the last close frees it", fcntl.flock, b, SH | NB)
    show("nonsense", fcntl.flock, b, 77)
    os.mkdir("d")
    show("a directory", fcntl.flock, os.open("d", os.O_RDONLY), EX | NB)


@case
def record_locks():
    put("f", "x" * 1000)
    fd = os.open("f", os.O_RDWR)

    def ask(what, kind, start, length, command=fcntl.F_GETLK):
        def call():
            other = os.open("f", os.O_RDWR)
            answer = struct.unpack("hhqqi4x", fcntl.fcntl(other, command, flock(kind, start, length)))
            say(what, answer[0], answer[2:4], "holder" if answer[4] == os.getppid() else answer[4])
        in_child(call)

    def attempt(what, kind, start, length, command=fcntl.F_SETLK):
        def call():
            show(what, lambda: fcntl.fcntl(os.open("f", os.O_RDWR), command, flock(kind, start, length)) and None)
        in_child(call)

    fcntl.fcntl(fd, fcntl.F_SETLK, flock(WR, 100, 50))
    for start, length in [(0, 100), (0, 101), (149, 1), (150, 0), (0, 0), (120, 5)]:
        ask("get %d %d" % (start, length), RD, start, length)
        attempt("read lock %d %d" % (start, length), RD, start, length)
        attempt("write lock %d %d" % (start, length), WR, start, length)
        attempt("of a description %d %d" % (start, length), WR, start, length, F_OFD_SETLK)
    fcntl.fcntl(fd, fcntl.F_SETLK, flock(RD, 100, 50))
    attempt("beside a reader", RD, 120, 5)
    attempt("writer beside a reader", WR, 120, 5)
    fcntl.fcntl(fd, fcntl.F_SETLK, flock(UN, 110, 10))
    ask("split, first half", WR, 0, 0)
    ask("split, hole", WR, 110, 10)
    ask("split, second half", WR, 115, 100)
    os.close(os.open("f", os.O_RDONLY))
    ask("gone with any close of the process", WR, 0, 0)
    show("read lock of a writer", lambda: fcntl.fcntl(os.open("f", os.O_WRONLY), fcntl.F_SETLK, flock(RD)) and None)
    show("write lock of a reader", lambda: fcntl.fcntl(os.open("f", os.O_RDONLY), fcntl.F_SETLK, flock(WR)) and None)
    show("negative", lambda: fcntl.fcntl(fd, fcntl.F_SETLK, flock(WR, -5, 2)) and None)
    ofd = os.open("f", os.O_RDWR)
    show("description locks", lambda: fcntl.fcntl(ofd, F_OFD_SETLK, flock(WR, 0, 10)) and None)
    show("of one process conflict", lambda: fcntl.fcntl(os.open("f", os.O_RDWR), F_OFD_SETLK, flock(WR, 5, 1)) and None)
    ask("told as", WR, 0, 0, F_OFD_GETLK)
    # Behind a lock: granted when it goes, and interrupted by a signal.
    fcntl.fcntl(fd, fcntl.F_SETLK, flock(WR, 500, 10))
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        other = os.open("f", os.O_RDWR)
        os.write(w, b"?")
        fcntl.fcntl(other, fcntl.F_SETLKW, flock(WR, 500, 10))
        os.write(w, b"!")
        os._exit(0)
    os.read(r, 1)
    time.sleep(0.2)
    fcntl.fcntl(fd, fcntl.F_SETLK, flock(UN, 500, 10))
    say("granted", os.read(r, 1), os.waitpid(pid, 0)[1])

    def interrupted():
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(InterruptedError(errno.EINTR, "")))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        show("interrupted", lambda: fcntl.fcntl(os.open("f", os.O_RDWR), fcntl.F_SETLKW, flock(WR, 600, 10)) and None)

    fcntl.fcntl(fd, fcntl.F_SETLK, flock(WR, 600, 10))
    in_child(interrupted)


@case
def deadlock():
    put("f", "x" * 100)
    fd = os.open("f", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLK, flock(WR, 0, 1))
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        other = os.open("f", os.O_RDWR)
        fcntl.fcntl(other, fcntl.F_SETLK, flock(WR, 1, 1))
        os.write(w, b"x")
        fcntl.fcntl(other, fcntl.F_SETLKW, flock(WR, 0, 1))
        os._exit(0)
    os.read(r, 1)
    time.sleep(0.2)
    signal.alarm(20)
    show("each behind the other", lambda: fcntl.fcntl(fd, fcntl.F_SETLKW, flock(WR, 1, 1)) and None)
    fcntl.fcntl(fd, fcntl.F_SETLK, flock(UN, 0, 1))
    say(os.waitpid(pid, 0)[1])


@case
def watches():
    """inotify sees what is done through the mount."""
    IN_ALL = 0xFFF
    os.mkdir("d")
    ifd = libc.inotify_init1(os.O_NONBLOCK)
    checked(libc.inotify_add_watch(ifd, b"d", IN_ALL))
    put("d/a")
    os.rename("d/a", "d/b")
    os.chmod("d/b", 0o600)
    os.unlink("d/b")
    buf = os.read(ifd, 65536)
    at, out = 0, []
    while at < len(buf):
        _, mask, _, length = struct.unpack_from("iIII", buf, at)
        out.append((hex(mask), buf[at + 16:at + 16 + length].split(b"\0")[0]))
        at += 16 + length
    for event in out:
        say(*event)
