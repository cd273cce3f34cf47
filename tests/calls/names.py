"""Calls on names: what may be made, moved, linked and removed, and what is refused."""

import socket
from support import *


@case
def any_bytes_are_a_name():
    for n in [b"\x01", b"\xff\xfe", b"\n", b" ", b" a ", b"-rf", b"*", b"\\", b"\x7f" * 255, "ä".encode() * 127,
              bytes(range(1, 47)), bytes(range(48, 256)), b"...", b"..a", b".a"]:
        show(n[:8], put, n)
    show("256 bytes", put, b"n" * 256)
    show("mkdir 256", os.mkdir, b"n" * 256)
    show("stat 256", os.stat, b"n" * 256)
    show("unlink 256", os.unlink, b"n" * 256)
    show("link 256", os.link, b"-rf", b"n" * 256)
    show("symlink 256", os.symlink, b"t", b"n" * 256)
    show("rename 256", os.rename, b"-rf", b"n" * 256)
    show("rename from 256", os.rename, b"n" * 256, b"x")
    tree()


@case
def dots_and_slashes():
    os.mkdir("d")
    put("f")
    os.symlink("d", "sd")
    os.symlink("f", "sf")
    os.symlink("nothing", "sn")
    for p in [".", "..", "d/.", "d/..", "f/", "f/.", "f/x", "d/", "sd/", "sf/", "sn/", "sn", "", "nothing/", "/" * 4096]:
        for what, call in [
            ("stat", lambda p: stat.S_ISDIR(os.stat(p).st_mode)), ("lstat", lambda p: stat.S_ISDIR(os.lstat(p).st_mode)),
            ("mkdir", os.mkdir), ("rmdir", os.rmdir), ("unlink", os.unlink),
            ("creat", lambda p: os.close(os.open(p, os.O_CREAT | os.O_WRONLY))),
            ("excl", lambda p: os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY))),
            ("read", lambda p: os.close(os.open(p, os.O_RDONLY))),
            ("symlink", lambda p: os.symlink("t", p)), ("link", lambda p: os.link("f", p)),
            ("link from", lambda p: os.link(p, "l")), ("mknod", lambda p: os.mknod(p, stat.S_IFREG | 0o600)),
            ("fifo", os.mkfifo), ("readlink", os.readlink),
            ("rename to", lambda p: os.rename("f", p)), ("rename dir to", lambda p: os.rename("d", p)),
            ("rename from", lambda p: os.rename(p, "moved")),
            ("truncate", lambda p: os.truncate(p, 0)), ("listdir", lambda p: sorted(os.listdir(p)) if p != ".." else 0),
        ]:
            show("%s %r" % (what, p[:9]), call, p)
            # As it was.
            for extra in ["l", "nothing", "moved"]:
                if os.path.lexists(extra):
                    say("    made", extra, looks(extra))
                    (os.rmdir if os.path.isdir(extra) and not os.path.islink(extra) else os.unlink)(extra)
            for name, make in [("d", os.mkdir), ("f", put), ("sd", lambda n: os.symlink("d", n)),
                               ("sf", lambda n: os.symlink("f", n)), ("sn", lambda n: os.symlink("nothing", n))]:
                if not os.path.lexists(name):
                    say("    lost", name)
                    make(name)
    tree()


KINDS = ["none", "file", "link", "dir", "full", "fifo", "same"]


def make(kind, name):
    if kind == "file":
        put(name, name)
    elif kind == "link":
        os.symlink("file-nowhere", name)
    elif kind == "dir":
        os.mkdir(name)
    elif kind == "full":
        os.mkdir(name)
        put(name + "/in")
    elif kind == "fifo":
        os.mkfifo(name)


@case
def rename_of_everything_over_everything():
    for flags in [0, NOREPLACE, EXCHANGE, WHITEOUT, NOREPLACE | WHITEOUT, NOREPLACE | EXCHANGE, EXCHANGE | WHITEOUT, 8]:
        for src in KINDS[:-1]:
            for dst in KINDS:
                top = "%d-%s-%s" % (flags, src, dst)
                os.mkdir(top)
                os.mkdir(top + "/p")
                os.mkdir(top + "/q")
                a, b = top + "/p/a", top + "/q/b"
                make(src, a)
                if dst == "same":
                    if src in ("none", "dir", "full"):
                        continue
                    os.link(a, b, follow_symlinks=False)
                make(dst, b)
                show("rename %s %s %d" % (src, dst, flags), renameat2, a, b, flags)
    tree()


@case
def rename_into_itself():
    os.makedirs("a/b/c")
    put("f")
    show("below itself", os.rename, "a", "a/b/x")
    show("over itself", os.rename, "a", "a")
    show("over its child", os.rename, "a", "a/b")
    show("over its parent", os.rename, "a/b/c", "a/b")
    show("exchange with its child", renameat2, "a", "a/b", EXCHANGE)
    show("exchange with its parent", renameat2, "a/b", "a", EXCHANGE)
    show("exchange below itself", renameat2, "a", "a/b/c", EXCHANGE)
    show("file over itself", os.rename, "f", "f")
    show("noreplace itself", renameat2, "f", "f", NOREPLACE)
    show("exchange itself", renameat2, "f", "f", EXCHANGE)
    show("whiteout itself", renameat2, "f", "f", WHITEOUT)
    os.link("f", "g")
    show("two names of one file", os.rename, "f", "g")
    show("exchange two names of one file", renameat2, "f", "g", EXCHANGE)
    show("whiteout over another name of itself", renameat2, "f", "g", WHITEOUT)
    show("long loop", os.rename, "a", "a/b/c/d")
    tree()


@case
def whiteouts():
    os.mkdir("d")
    put("d/a", "1")
    show("whiteout", renameat2, "d/a", "d/b", WHITEOUT)
    show("over", renameat2, "d/b", "d/a", 0)
    show("whiteout of a whiteout", os.mknod, "w", stat.S_IFCHR, 0)
    show("moved", renameat2, "w", "v", WHITEOUT)
    show("link", os.link, "w", "w2")
    show("open", os.open, "w", os.O_RDONLY)
    os.mkdir("dd")
    show("of a directory", renameat2, "dd", "ee", WHITEOUT)
    os.chmod("d", 0o777)
    os.chown("d", ALICE, ALICE)

    def user():
        put("d/mine")
        show("as a user", renameat2, "d/mine", "d/moved", WHITEOUT)
        show("mknod 0:0 as a user", os.mknod, "d/wh", stat.S_IFCHR | 0o600, 0)
        show("mknod 1:3 as a user", os.mknod, "d/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))

    as_user(ALICE, user)
    tree()


@case
def links():
    put("f")
    os.mkdir("d")
    os.symlink("f", "s")
    os.mkfifo("p")
    os.mknod("c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    show("file", os.link, "f", "f2")
    show("of a directory", os.link, "d", "d2")
    show("of a symlink", lambda: linkat("s", "s2"))
    show("through a symlink", lambda: linkat("s", "s3", AT_SYMLINK_FOLLOW))
    show("fifo", os.link, "p", "p2")
    show("device", os.link, "c", "c2")
    show("over itself", os.link, "f", "f")
    show("there already", os.link, "f", "d")
    show("of nothing", os.link, "nothing", "n")
    show("into nothing", os.link, "f", "nothing/n")
    show("below a file", os.link, "f", "f/n")
    fd = os.open("f", os.O_RDONLY)
    show("by descriptor", lambda: linkat("", "f3", AT_EMPTY_PATH, fd))
    show("by /proc", lambda: linkat("/proc/self/fd/%d" % fd, "f4", AT_SYMLINK_FOLLOW))
    show("unknown flag", lambda: linkat("f", "f5", 0x8000))
    for n in ["f", "f2", "f3", "f4", "s3"]:
        os.unlink(n)
    say("links left", os.fstat(fd).st_nlink)
    show("of what has no name", lambda: linkat("", "f6", AT_EMPTY_PATH, fd))
    show("the same by /proc", lambda: linkat("/proc/self/fd/%d" % fd, "f7", AT_SYMLINK_FOLLOW))
    tree()


@case
def nodes_of_all_kinds():
    for umask in [0, 0o022, 0o777]:
        os.umask(umask)
        for n, kind, dev in [("reg", stat.S_IFREG, 0), ("none", 0, 0), ("fifo", stat.S_IFIFO, 0), ("sock", stat.S_IFSOCK, 0),
                             ("fifo-dev", stat.S_IFIFO, 5), ("chr", stat.S_IFCHR, os.makedev(1, 3)),
                             ("chr0", stat.S_IFCHR, 0), ("blk", stat.S_IFBLK, os.makedev(7, 0)),
                             ("large", stat.S_IFBLK, os.makedev(4095, 1048575)), ("mid", stat.S_IFCHR, os.makedev(300, 70000)),
                             ("dir", stat.S_IFDIR, 0), ("lnk", stat.S_IFLNK, 0), ("odd", 0o030000, 0)]:
            for mode in [0o666, 0o7777]:
                show("%s %o %o" % (n, mode, umask), os.mknod, "%s-%o-%o" % (n, mode, umask), kind | mode, dev)
    os.umask(0o022)
    os.mkdir("u", 0o777)
    os.chmod("u", 0o777)

    def user():
        for n, kind, dev in [("reg", stat.S_IFREG, 0), ("fifo", stat.S_IFIFO, 0), ("sock", stat.S_IFSOCK, 0),
                             ("chr", stat.S_IFCHR, os.makedev(1, 3)), ("chr0", stat.S_IFCHR, 0),
                             ("blk", stat.S_IFBLK, os.makedev(7, 0)), ("blk0", stat.S_IFBLK, 0)]:
            show(n, os.mknod, "u/" + n, kind | 0o6755, dev)

    as_user(ALICE, user)
    tree()


@case
def opening():
    put("f", "data")
    os.mkdir("d")
    os.symlink("f", "s")
    os.symlink("new", "dangling")
    os.symlink("loop", "loop")
    os.mkfifo("p")
    os.mknod("k", stat.S_IFSOCK | 0o600)
    os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod("odd", stat.S_IFCHR | 0o666, os.makedev(239, 77))
    flags = {"R": os.O_RDONLY, "W": os.O_WRONLY, "RW": os.O_RDWR, "3": 3}
    extra = {"": 0, "C": os.O_CREAT, "CX": os.O_CREAT | os.O_EXCL, "T": os.O_TRUNC, "D": os.O_DIRECTORY,
             "CD": os.O_CREAT | os.O_DIRECTORY, "N": os.O_NOFOLLOW, "A": os.O_APPEND, "P": os.O_PATH, "X": os.O_EXCL,
             "NC": os.O_NOFOLLOW | os.O_CREAT, "AT": os.O_APPEND | os.O_TRUNC, "NA": os.O_NOATIME}
    for p in ["f", "d", "s", "dangling", "loop", "p", "k", "zero", "odd", "nothing"]:
        for fn, f in flags.items():
            for en, e in extra.items():
                fd = result(os.open, p, f | e | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
                say("open", p, fn, en, "->", fd if isinstance(fd, str) else "opened")
                if not isinstance(fd, str):
                    os.close(fd)
                for made in ["new", "nothing"]:
                    if os.path.lexists(made):
                        say("    made", looks(made))
                        os.unlink(made)
                if os.stat("f").st_size == 0:
                    say("    truncated")
                    put("f", "data")

    def user():
        fd = result(os.open, "f", os.O_RDONLY | os.O_NOATIME)
        say("O_NOATIME by another", fd if isinstance(fd, str) else "opened")

    as_user(ALICE, user)


@case
def running_programs():
    import shutil
    import subprocess
    shutil.copy("/bin/sleep", "sleep")
    child = subprocess.Popen(["./sleep", "30"])
    time.sleep(0.2)
    show("write to what runs", lambda: os.close(os.open("sleep", os.O_WRONLY)))
    show("truncate what runs", os.truncate, "sleep", 0)
    show("unlink what runs", os.unlink, "sleep")
    put("sleep2", "new")
    show("a new one at its place", os.rename, "sleep2", "sleep")
    say("runs on", child.poll() is None)
    child.kill()
    child.wait()
    fd = os.open("script", os.O_WRONLY | os.O_CREAT, 0o755)
    os.write(fd, b"#!/bin/sh\nexit 7\n")
    show("run what is open for writing", lambda: subprocess.call(["./script"]))
    os.close(fd)
    show("run", lambda: subprocess.call(["./script"]))
    os.chmod("script", 0o644)
    show("run without the right", lambda: subprocess.call(["./script"]))
    shutil.copy("/usr/bin/id", "id")
    os.chown("id", ALICE, SHARED)
    os.chmod("id", 0o6755)

    def user():
        say(subprocess.run(["./id", "-u"], capture_output=True, text=True).stdout.strip(),
            subprocess.run(["./id", "-g"], capture_output=True, text=True).stdout.strip())

    as_user(BOB, user)


@case
def removed_but_held():
    os.makedirs("d/e")
    fd = os.open("d/e", os.O_RDONLY)
    os.chdir("d/e")
    os.rmdir("../e")
    show("make in a removed directory", put, "x")
    show("mkdir", os.mkdir, "x")
    show("link", os.link, "/proc/self/exe", "x")
    show("symlink", os.symlink, "t", "x")
    show("mknod", os.mkfifo, "x")
    show("rename into", os.rename, "../../d", "x")
    show("list", os.listdir, fd)
    show("getcwd", os.getcwd)
    show("stat", lambda: os.fstat(fd).st_nlink)
    show("fsync", os.fsync, fd)
    show("chmod", os.fchmod, fd, 0o700)
    # Left out: setxattr, for which a removed directory is gone (ESTALE).
    show("up", lambda: sorted(os.listdir("..")))
    os.chdir("..")
    f = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
    os.link("f", "g")
    os.unlink("f")
    say("links", os.fstat(f).st_nlink)
    os.unlink("g")
    say("links", os.fstat(f).st_nlink)
    show("write", os.write, f, b"held")
    show("chmod", os.fchmod, f, 0o600)
    show("chown", os.fchown, f, ALICE, ALICE)
    show("truncate", os.ftruncate, f, 2)
    show("fsync", os.fsync, f)
    show("setxattr", os.setxattr, f, "user.a", b"1")
    show("getxattr", os.getxattr, f, "user.a")
    show("fallocate", fallocate, f, 0, 0, 100)
    show("read", os.pread, f, 10, 0)
    show("utime", lambda: os.utime(f, ns=(5, 7)))
    s = os.fstat(f)
    say(oct(s.st_mode), s.st_uid, s.st_size, s.st_atime_ns, s.st_mtime_ns)
    show("open again by /proc", lambda: os.close(os.open("/proc/self/fd/%d" % f, os.O_RDWR)))


@case
def listing():
    os.mkdir("d")
    made = {}
    for n, make_it in [("file", put), ("dir", os.mkdir), ("fifo", os.mkfifo), ("link", lambda n: os.symlink("t", n)),
                       ("sock", lambda n: os.mknod(n, stat.S_IFSOCK)), ("chr", lambda n: os.mknod(n, stat.S_IFCHR, 0)),
                       ("blk", lambda n: os.mknod(n, stat.S_IFBLK, 5))]:
        make_it("d/" + n)
    for entry in sorted(os.scandir("d"), key=lambda e: e.name):
        # Without a stat: what the directory itself says.
        say(entry.name, entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False), entry.is_symlink())
    out = libc_types("d")
    say(sorted(out.items()))
    show("of a file", os.listdir, "d/file")
    fd = os.open("d", os.O_RDONLY)
    say(sorted(os.listdir(fd)))
    show("read a directory", os.read, fd, 10)
    show("write a directory", os.write, fd, b"x")
    show("truncate a directory", os.ftruncate, fd, 0)
    show("fallocate a directory", fallocate, fd, 0, 0, 10)
    show("seek to data", os.lseek, fd, 0, os.SEEK_DATA)
    os.unlink("d/file")
    os.lseek(fd, 0, os.SEEK_SET)
    say(sorted(os.listdir(fd)))
    for n in range(500):
        put("d/n%d" % n)
    names = os.listdir("d")
    say(len(names), len(set(names)))
    for n in names:
        if n.startswith("n"):
            os.unlink("d/" + n)
    say(sorted(os.listdir("d")))


def libc_types(path):
    """`d_type` of every name, as getdents64 hands it over, `.` and `..` included."""
    fd = os.open(path, os.O_RDONLY)
    buf = ctypes.create_string_buffer(1 << 16)
    out = {}
    while True:
        n = checked(libc.syscall(217 if os.uname().machine == "x86_64" else 61, fd, buf, len(buf)))
        if n == 0:
            return out
        at = 0
        while at < n:
            length, kind = struct.unpack_from("<HB", buf.raw, at + 16)
            out[buf.raw[at + 19:at + length].split(b"\0")[0].decode()] = kind
            at += length


@case
def sticky_directories():
    os.mkdir("t")
    os.chmod("t", 0o1777)
    for owner in [ALICE, BOB, 0]:
        for n in ["a", "b", "c"]:
            put("t/%d-%s" % (owner, n), mode=0o666)
            os.chown("t/%d-%s" % (owner, n), owner, owner)

    def user():
        for owner in [ALICE, BOB, 0]:
            show("unlink of %d" % owner, os.unlink, "t/%d-a" % owner)
            show("rename of %d" % owner, os.rename, "t/%d-b" % owner, "t/%d-moved" % owner)
            put("t/mine-%d" % owner)
            show("rename over %d" % owner, os.rename, "t/mine-%d" % owner, "t/%d-c" % owner)

    as_user(ALICE, user)
    os.chown("t", ALICE, ALICE)
    as_user(ALICE, user)
    show("sticky file", lambda: put("s", mode=0o1644))

    def sticky():
        put("own")
        show("chmod +t as a user", os.chmod, "own", 0o1755)
        show("mkdir +t as a user", os.mkdir, "dir", 0o1755)

    os.chmod(".", 0o777)
    as_user(ALICE, sticky)
    tree()


@case
def deep_trees():
    here = os.open(".", os.O_RDONLY)
    fds = [here]
    name = "d" * 250
    for n in range(40):
        os.mkdir(name, dir_fd=fds[-1])
        fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
    path = "/".join([name] * 40)
    show("stat of 10,000 bytes", os.stat, path)
    fd = os.open("f", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=fds[-1])
    os.write(fd, b"deep")
    os.fchdir(fds[-1])
    say(get("f"), os.listdir("."))
    say("getcwd", len(os.getcwd()) > 10_000)
    say(os.stat("../..").st_nlink)
    os.fchdir(here)
    show("move the top", os.rename, name, "top")
    show("below itself", lambda: os.rename("top", "x", src_dir_fd=here, dst_dir_fd=fds[-1]))
    os.unlink("f", dir_fd=fds[-1])
    for n in range(39, 0, -1):
        os.rmdir(name, dir_fd=fds[n])
    os.rmdir("top")
    say(os.listdir("."))


@case
def symbolic_links():
    for n in [1, 60, 61, 255, 1000, 4094, 4095, 4096]:
        show("target of %d" % n, os.symlink, "t" * n, "s%d" % n)
    show("empty", os.symlink, "", "e")
    os.symlink("a" * 100, "l")
    buf = ctypes.create_string_buffer(10)
    say("readlink into 10 bytes", libc.readlink(b"l", buf, 10), buf.raw)
    say("size", os.lstat("l").st_size)
    os.symlink("0", "c1")
    put("0", "end")
    for n in range(2, 50):
        os.symlink("c%d" % (n - 1), "c%d" % n)
    for n in [39, 40, 41, 42]:
        show("chain of %d" % n, get, "c%d" % n)
    show("chown of a link", lambda: os.lchown("l", ALICE, BOB))
    show("utimes of a link", lambda: os.utime("l", ns=(1, 2), follow_symlinks=False))
    say(looks("l"), os.lstat("l").st_mtime_ns)
    show("xattr of a link", lambda: os.setxattr("l", "user.a", b"1", follow_symlinks=False))
    show("trusted of a link", lambda: os.setxattr("l", "trusted.a", b"1", follow_symlinks=False))
    show("security of a link", lambda: os.setxattr("l", "security.a", b"1", follow_symlinks=False))
    show("list of a link", lambda: sorted(os.listxattr("l", follow_symlinks=False)))
    show("acl of a link", lambda: os.setxattr("l", ACCESS, acl(("u", 6), ("g", 4), ("o", 4)),
                                              follow_symlinks=False))
    os.umask(0o077)
    os.symlink("x", "masked")
    tree()


@case
def sockets_and_fifos():
    s = socket.socket(socket.AF_UNIX)
    show("bind", s.bind, "sock")
    s.listen(1)
    t = socket.socket(socket.AF_UNIX)
    show("bind again", t.bind, "sock")
    c = socket.socket(socket.AF_UNIX)
    show("connect", c.connect, "sock")
    a, _ = s.accept()
    c.sendall(b"hello")
    say(a.recv(10))
    put("plain")
    show("connect to a file", socket.socket(socket.AF_UNIX).connect, "plain")
    os.rename("sock", "moved")
    show("connect to the moved", socket.socket(socket.AF_UNIX).connect, "moved")
    s.close()
    show("connect to the closed", socket.socket(socket.AF_UNIX).connect, "moved")
    show("unlink", os.unlink, "moved")
    os.mkfifo("p")
    show("write end without a reader", os.open, "p", os.O_WRONLY | os.O_NONBLOCK)
    r = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
    w = os.open("p", os.O_WRONLY)
    os.write(w, b"through")
    say(os.read(r, 100), os.stat("p").st_size)
    show("truncate a fifo", os.truncate, "p", 0)
    show("fallocate a fifo", fallocate, w, 0, 0, 10)
    show("fsync a fifo", os.fsync, w)
    show("seek a fifo", os.lseek, w, 0, os.SEEK_SET)
    tree()
