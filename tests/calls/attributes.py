"""Calls on attributes: modes, owners, times, extended attributes, access lists; and what a change of
content takes away."""

import mmap
import resource
from support import *


def shows_bits(path):
    capability = result(os.getxattr, path, CAPABILITY)
    return looks(path) + (" +cap" if not isinstance(capability, str) else "")


def change_content(path):
    """Every way to change a file's content."""
    def opened(flags, act):
        def call():
            fd = os.open(path, flags)
            try:
                act(fd)
            finally:
                os.close(fd)
        return call

    def mapped(fd):
        with mmap.mmap(fd, 4096) as m:
            m[0] = 7
            m.flush()

    def direct(fd):
        with mmap.mmap(-1, 4096) as m:
            os.write(fd, m)

    def copied(fd):
        src = os.open("source", os.O_RDONLY)
        os.copy_file_range(src, fd, 100)
        os.close(src)

    return [
        ("write", opened(os.O_WRONLY, lambda fd: os.write(fd, b"y"))),
        ("write of nothing", opened(os.O_WRONLY, lambda fd: os.write(fd, b""))),
        ("append", opened(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"y"))),
        ("synced write", opened(os.O_WRONLY | os.O_SYNC, lambda fd: os.write(fd, b"y"))),
        ("direct write", opened(os.O_WRONLY | os.O_DIRECT, direct)),
        ("mapped write", opened(os.O_RDWR, mapped)),
        ("truncate", lambda: os.truncate(path, 10)),
        ("truncate to the same", lambda: os.truncate(path, os.stat(path).st_size)),
        ("ftruncate", opened(os.O_WRONLY, lambda fd: os.ftruncate(fd, 10))),
        ("open and truncate", opened(os.O_WRONLY | os.O_TRUNC, lambda fd: None)),
        ("allocate", opened(os.O_WRONLY, lambda fd: fallocate(fd, 0, 0, 9000))),
        ("allocate keeping the size", opened(os.O_WRONLY, lambda fd: fallocate(fd, KEEP, 0, 9000))),
        ("punch", opened(os.O_WRONLY, lambda fd: fallocate(fd, PUNCH | KEEP, 0, 4096))),
        ("zero", opened(os.O_WRONLY, lambda fd: fallocate(fd, ZERO, 0, 4096))),
        ("copy into", opened(os.O_WRONLY, copied)),
        ("open for writing", opened(os.O_WRONLY, lambda fd: None)),
    ]


@case
def what_a_change_of_content_takes_away():
    put("source", "s" * 200)
    os.mkdir("w")
    os.chmod("w", 0o777)
    for who, uid, gid, groups in [("root", 0, 0, ()), ("owner", ALICE, ALICE, ()), ("other", BOB, BOB, ()),
                                  ("member", BOB, BOB, (SHARED,))]:
        for mode in [0o6777, 0o6767, 0o4777, 0o2777, 0o2767, 0o0777]:
            for n, (what, _) in enumerate(change_content("")):
                path = "w/%s-%o-%s" % (who, mode, what.replace(" ", "_"))
                put(path, "d" * 5000)
                os.chown(path, ALICE, SHARED)
                os.setxattr(path, CAPABILITY, SOME_CAPABILITY)
                os.chmod(path, mode)
                before = shows_bits(path)

                def act():
                    show("%s %o %s %s" % (who, mode, what, before), change_content(path)[n][1])

                as_user(uid, act, gid=gid, groups=groups)
                say("    ", shows_bits(path))
                os.unlink(path)


@case
def what_a_change_of_owner_takes_away():
    for kind in ["file", "dir", "fifo"]:
        for who, uid, groups in [("root", 0, ()), ("owner", ALICE, (SHARED,)), ("other", BOB, (SHARED,))]:
            for mode in [0o6777, 0o6767, 0o6644, 0o1777, 0o0640]:
                for what, call in [("uid", lambda p: os.chown(p, BOB, -1)), ("same uid", lambda p: os.chown(p, ALICE, -1)),
                                   ("gid", lambda p: os.chown(p, -1, SHARED)), ("foreign gid", lambda p: os.chown(p, -1, 7)),
                                   ("none", lambda p: os.chown(p, -1, -1)), ("both", lambda p: os.chown(p, ALICE, SHARED)),
                                   ("chmod", lambda p: os.chmod(p, 0o6711)), ("chmod 2640", lambda p: os.chmod(p, 0o2640)),
                                   ("chmod 1777", lambda p: os.chmod(p, 0o1777)),
                                   ("utime", os.utime), ("xattr", lambda p: os.setxattr(p, "user.x", b"1")),
                                   ("link", lambda p: os.link(p, p + "2"))]:
                    if who == "other" and what == "none":
                        # The kernel removes file capabilities before it asks a FUSE filesystem, which
                        # then refuses.
                        continue
                    path = "%s-%s-%o-%s" % (kind, who, mode, what.replace(" ", "_"))
                    {"file": put, "dir": os.mkdir, "fifo": os.mkfifo}[kind](path)
                    os.chown(path, ALICE, ALICE)
                    if kind == "file":
                        os.setxattr(path, CAPABILITY, SOME_CAPABILITY)
                    os.chmod(path, mode)
                    as_user(uid, lambda: show(path, call, path), groups=groups)
                    say("    ", shows_bits(path))


@case
def owners_of_what_is_made():
    for mode in [0o777, 0o2777, 0o3777]:
        top = "d%o" % mode
        os.mkdir(top)
        os.chown(top, 0, SHARED)
        os.chmod(top, mode)

        def make(who):
            for umask in [0, 0o027]:
                os.umask(umask)
                p = "%s/%s-%o-" % (top, who, umask)
                for m in [0o644, 0o2755, 0o6777, 0o1666]:
                    show("create %o" % m, lambda: os.close(os.open(p + "f%o" % m, os.O_CREAT | os.O_EXCL | os.O_WRONLY, m)))
                    show("mkdir %o" % m, os.mkdir, p + "d%o" % m, m)
                    show("mknod %o" % m, os.mknod, p + "n%o" % m, stat.S_IFREG | m)
                    show("fifo %o" % m, os.mkfifo, p + "p%o" % m, m)
                show("symlink", os.symlink, "t", p + "s")

        as_user(0, make, "root")
        as_user(ALICE, make, "member", groups=(SHARED,))
        as_user(ALICE, make, "alice")
    tree()


@case
def permission_bits():
    os.mkdir("d")
    for mode in [0, 0o400, 0o200, 0o100, 0o040, 0o020, 0o010, 0o004, 0o002, 0o001, 0o700, 0o070, 0o007, 0o555, 0o333, 0o777]:
        for path in ["f%o" % mode, "d%o" % mode]:
            if path[0] == "f":
                put(path)
            else:
                os.mkdir(path)
                put(path + "/in")
            os.chown(path, ALICE, SHARED)
            os.chmod(path, mode)

        def user(who):
            f, d = "f%o" % mode, "d%o" % mode
            for what, call in [("read", lambda: get(f)), ("write", lambda: os.close(os.open(f, os.O_WRONLY))),
                               ("access rwx", lambda: [os.access(f, m) for m in (4, 2, 1, 7)]),
                               ("list", lambda: os.listdir(d)), ("enter", lambda: get(d + "/in")),
                               ("make", lambda: put(d + "/new-" + who)), ("remove", lambda: os.unlink(d + "/new-" + who)),
                               ("truncate", lambda: os.truncate(f, 1)), ("utime now", lambda: os.utime(f)),
                               ("utime then", lambda: os.utime(f, (1, 1))), ("chmod", lambda: os.chmod(f, mode)),
                               ("getxattr", lambda: os.getxattr(f, "user.a")), ("setxattr", lambda: os.setxattr(f, "user.b", b"")),
                               ("chdir", lambda: (os.chdir(d), os.chdir("..")) and None)]:
                show("%s %o %s" % (who, mode, what), call)

        as_user(0, user, "root")
        as_user(ALICE, user, "owner")
        as_user(BOB, user, "member", groups=(SHARED,))
        as_user(BOB, user, "other")


@case
def extended_attributes():
    put("f")
    os.mkdir("d")
    os.mkfifo("p")
    os.mkdir("t")
    os.chmod("t", 0o1777)
    for path in ["f", "d", "p", "t", "nothing"]:
        for n in ["user.a", "trusted.a", "security.a", "system.a", "other.a", "user.", "user", "", "u" * 300,
                  "user." + "n" * 250, "user." + "n" * 251, "USER.a", "security.selinux.x", "system.posix_acl_access"]:
            for value in [b"v", b"", b"\0\xff" * 50]:
                show("set %s %s %d" % (path, n[:20], len(value)), os.setxattr, path, n, value)
            show("create", os.setxattr, path, n, b"w", os.XATTR_CREATE)
            show("replace", os.setxattr, path, n, b"longer", os.XATTR_REPLACE)
            show("both", os.setxattr, path, n, b"w", os.XATTR_CREATE | os.XATTR_REPLACE)
            show("unknown flag", os.setxattr, path, n, b"w", 8)
            show("get", os.getxattr, path, n)
            show("size", xattr_size, path, n, 0)
            show("short", xattr_size, path, n, 2)
            show("list", lambda: sorted(os.listxattr(path)))
            show("remove", os.removexattr, path, n)
            show("remove again", os.removexattr, path, n)
            show("replace what is gone", os.setxattr, path, n, b"w", os.XATTR_REPLACE)
            show("create anew", os.setxattr, path, n, b"w", os.XATTR_CREATE)
    show("list into 3 bytes", lambda: checked(libc.listxattr(b"f", ctypes.create_string_buffer(3), 3)))
    say("list size", libc.listxattr(b"f", None, 0) > 3)
    show("65537 bytes", os.setxattr, "f", "user.big", b"b" * 65537)
    show("3000 bytes", os.setxattr, "f", "user.big", b"b" * 3000)
    show("by descriptor", lambda: os.getxattr(os.open("f", os.O_RDONLY), "user.a"))
    show("by read-only descriptor", lambda: os.setxattr(os.open("f", os.O_RDONLY), "user.c", b"1"))

    def user():
        os.chown
        for path in ["f", "d", "t", "mine"]:
            for n in ["user.a", "user.new", "trusted.a", "security.a", "security.new", CAPABILITY]:
                show("user get %s %s" % (path, n), os.getxattr, path, n)
                show("user set", os.setxattr, path, n, b"1")
                show("user remove", os.removexattr, path, n)
            show("user list", lambda: sorted(os.listxattr(path)))

    put("mine")
    os.setxattr("mine", "trusted.a", b"1")
    os.chown("mine", ALICE, ALICE)
    as_user(ALICE, user)
    before = os.stat("f").st_ctime_ns
    tick()
    os.setxattr("f", "user.z", b"1")
    say("ctime moves", os.stat("f").st_ctime_ns > before)
    tree()


@case
def access_lists():
    put("f", mode=0o640)
    os.mkdir("d")
    lists = {
        "minimal": acl(("u", 7), ("g", 5), ("o", 1)),
        "named": acl(("u", 6), ("U", 7, ALICE), ("g", 4), ("m", 6), ("o", 0)),
        "group": acl(("u", 6), ("g", 0), ("G", 7, SHARED), ("m", 5), ("o", 4)),
        "both": acl(("u", 7), ("U", 4, ALICE), ("U", 2, BOB), ("g", 1), ("G", 6, SHARED), ("m", 7), ("o", 0)),
        "mask only": acl(("u", 7), ("g", 7), ("m", 2), ("o", 7)),
        "empty": acl(),
        "no mask": acl(("u", 6), ("U", 7, ALICE), ("g", 4), ("o", 0)),
        "disorder": acl(("g", 4), ("u", 6), ("o", 0)),
        "twice": acl(("u", 6), ("U", 7, ALICE), ("U", 6, ALICE), ("g", 4), ("m", 6), ("o", 0)),
        "ids in disorder": acl(("u", 6), ("U", 7, BOB), ("U", 6, ALICE), ("g", 4), ("m", 6), ("o", 0)),
        "no others": acl(("u", 6), ("g", 4)),
        "too much": acl(("u", 8), ("g", 4), ("o", 0)),
        "version": b"\1\0\0\0" + acl(("u", 6), ("g", 4), ("o", 0))[4:],
        "cut": acl(("u", 6), ("g", 4), ("o", 0))[:-3],
        "nothing": b"",
        "named nobody": acl(("u", 6), ("U", 7, 0xFFFFFFFF), ("g", 4), ("m", 6), ("o", 0)),
    }
    for path in ["f", "d", "s", "p"]:
        for which in [ACCESS, DEFAULT]:
            for n, value in lists.items():
                if path == "s":
                    put("s")
                if path == "p" and not os.path.lexists("p"):
                    os.mkfifo("p")
                os.chmod(path, 0o6640 if path != "d" else 0o3750)
                show("set %s %s on %s" % (which[-7:], n, path), os.setxattr, path, which, value)
                say("    ", looks(path), sorted(os.listxattr(path)), result(os.getxattr, path, which))
                for mode in [0o777, 0o6421, 0]:
                    os.chmod(path, mode)
                    say("     chmod %o" % mode, looks(path), result(os.getxattr, path, which))
                show("remove", os.removexattr, path, which)
                show("remove again", os.removexattr, path, which)
                say("    ", looks(path), sorted(os.listxattr(path)))

    def user(who):
        show(who + " set", os.setxattr, "f", ACCESS, lists["named"])
        show(who + " remove", os.removexattr, "f", ACCESS)
        show(who + " read", get, "f")
        show(who + " write", lambda: os.close(os.open("f", os.O_WRONLY)))
        show(who + " access", lambda: [os.access("f", m) for m in (4, 2, 1)])

    for n in ["minimal", "named", "group", "both", "mask only"]:
        os.chmod("f", 0o600)
        os.setxattr("f", ACCESS, lists[n])
        say(n)
        as_user(ALICE, user, "alice")
        as_user(BOB, user, "bob")
        as_user(BOB, user, "member", groups=(SHARED,))
    os.chown("f", ALICE, BOB)
    os.chmod("f", 0o2770)
    as_user(ALICE, lambda: show("owner outside the group sets", os.setxattr, "f", ACCESS, lists["both"]))
    say(looks("f"))


@case
def default_lists():
    defaults = {
        "minimal": acl(("u", 7), ("g", 5), ("o", 0)),
        "named": acl(("u", 7), ("U", 7, ALICE), ("g", 5), ("m", 7), ("o", 1)),
        "masked": acl(("u", 7), ("U", 7, ALICE), ("G", 6, SHARED), ("g", 5), ("m", 3), ("o", 4))[:0] or
                  acl(("u", 7), ("U", 7, ALICE), ("g", 5), ("G", 6, SHARED), ("m", 3), ("o", 4)),
        "none of it": acl(("u", 0), ("g", 0), ("o", 0)),
    }
    for n, value in defaults.items():
        top = n.replace(" ", "_")
        os.mkdir(top, 0o777)
        os.chmod(top, 0o2777)
        os.setxattr(top, DEFAULT, value)
        for umask in [0, 0o077, 0o777]:
            os.umask(umask)
            p = "%s/%o-" % (top, umask)
            for m in [0o777, 0o640, 0o4711, 0]:
                os.close(os.open(p + "f%o" % m, os.O_CREAT | os.O_WRONLY, m))
                os.mkdir(p + "d%o" % m, m)
                os.mknod(p + "n%o" % m, stat.S_IFREG | m)
                os.mkfifo(p + "p%o" % m, m)
            os.mkdir(p + "d0/below", 0o770)
            os.symlink("t", p + "s")
        os.umask(0o022)
        put(top + "/moved-out", mode=0o666)
        os.rename(top + "/moved-out", top + "-out")
        put(top + "-in")
        os.rename(top + "-in", top + "/moved-in")
    tree()


def times(path):
    s = os.lstat(path)
    return s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns


@case
def times_that_are_set():
    put("f")
    for a, m in [(0, 0), (1, 1), (999_999_999, 1_000_000_000), (1_234_567_890_123_456_789, 987_654_321_987_654_321),
                 (-1, -1), (-1_500_000_000, -999_999_999), (-2_000_000_000 * 10**9, 2_000_000_000 * 10**9),
                 (2**31 * 10**9, (2**31 - 1) * 10**9 + 999_999_999), (2**32 * 10**9, 2**33 * 10**9)]:
        show("%d %d" % (a, m), lambda: os.utime("f", ns=(a, m)))
        say("    ", times("f")[:2])
    spec = struct.Struct("qqqq")
    NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2

    def utimensat(path, atime, mtime):
        checked(libc.utimensat(AT_FDCWD, os.fsencode(path), spec.pack(*atime, *mtime), 0))

    os.utime("f", ns=(5, 6))
    show("omit both", utimensat, "f", (0, OMIT), (0, OMIT))
    say("    ", times("f")[:2])
    show("omit atime", utimensat, "f", (0, OMIT), (7, 8))
    say("    ", times("f")[:2])
    show("atime now", utimensat, "f", (0, NOW), (0, OMIT))
    say("    ", times("f")[0] > 10**18, times("f")[1])
    show("bad ns", utimensat, "f", (0, 10**9), (0, 0))
    show("negative ns", utimensat, "f", (0, -1), (0, 0))
    show("nothing", utimensat, "nothing", (0, 0), (0, 0))
    put("theirs", mode=0o622)
    put("closed", mode=0o600)

    def user():
        for path in ["theirs", "closed"]:
            show("now", utimensat, path, (0, NOW), (0, NOW))
            show("then", utimensat, path, (1, 0), (1, 0))
            show("one now", utimensat, path, (0, NOW), (0, OMIT))
            show("omit", utimensat, path, (0, OMIT), (0, OMIT))

    as_user(ALICE, user)


@case
def times_that_move():
    """Left out: truncation to the same size and an access list that changes nothing, where a kernel
    that keeps the times of a FUSE file does not (does) move them."""
    def fresh():
        for n in ["a", "d/b", "d2/keep"]:
            os.makedirs(os.path.dirname(n) or ".", exist_ok=True)
            put(n, "data" * 2000)
        for n in ["gone", "e", "d/x", "d2/y"]:
            if os.path.isdir(n):
                os.rmdir(n)
            elif os.path.lexists(n):
                os.unlink(n)

    put("src", "s" * 100)
    fd = None
    calls = [
        ("write", lambda: put_at("a", b"new", 0)), ("write of nothing", lambda: put_at("a", b"", 0)),
        ("extend", lambda: put_at("a", b"new", 9000)), ("truncate", lambda: os.truncate("a", 5)),
        ("grow", lambda: os.truncate("a", 50000)),
        ("open and truncate", lambda: os.close(os.open("a", os.O_WRONLY | os.O_TRUNC))),
        ("punch", lambda: with_fd("a", lambda f: fallocate(f, PUNCH | KEEP, 0, 100))),
        ("allocate", lambda: with_fd("a", lambda f: fallocate(f, 0, 0, 100000))),
        ("zero", lambda: with_fd("a", lambda f: fallocate(f, ZERO, 0, 100))),
        ("copy", lambda: with_fd("a", lambda f: os.copy_file_range(os.open("src", os.O_RDONLY), f, 50))),
        ("map", lambda: with_fd("a", map_write)),
        ("chmod", lambda: os.chmod("a", 0o600)), ("chown", lambda: os.chown("a", 1, 1)),
        ("chown to none", lambda: os.chown("a", -1, -1)),
        ("utime", lambda: os.utime("a", ns=(1, 1))), ("setxattr", lambda: os.setxattr("a", "user.a", b"1")),
        ("removexattr", lambda: os.removexattr("a", "user.a")), ("acl", lambda: os.setxattr("a", ACCESS, acl(("u", 7), ("g", 4), ("o", 4)))),
        ("link", lambda: os.link("a", "d/x")), ("unlink of one", lambda: (os.link("a", "d/x"), os.unlink("d/x"))),
        ("rename", lambda: os.rename("d/b", "d/x")), ("move", lambda: os.rename("d/b", "d2/y")),
        ("rename over", lambda: os.rename("a", "d/b")), ("exchange", lambda: renameat2("a", "d/b", EXCHANGE)),
        ("create", lambda: put("d/x")), ("mkdir", lambda: os.mkdir("d/x")), ("mknod", lambda: os.mkfifo("d/x")),
        ("symlink", lambda: os.symlink("t", "d/x")), ("unlink", lambda: os.unlink("d/b")),
        ("rmdir", lambda: (os.mkdir("d/x"), os.rmdir("d/x"))), ("failed mkdir", lambda: os.mkdir("d")),
        ("failed rename", lambda: os.rename("nothing", "d/b")), ("stat", lambda: os.stat("a")),
        ("open", lambda: os.close(os.open("a", os.O_RDWR))), ("fsync", lambda: with_fd("a", os.fsync)),
        ("rename a directory", lambda: os.rename("d2", "d/x")),
    ]
    for what, call in calls:
        fresh()
        os.sync()
        tick()
        places = [".", "a", "d", "d/b", "d2", "src"]
        # The object, wherever it goes.
        held = {p: os.open(p, os.O_PATH) for p in places}
        before = {p: os.fstat(held[p]) for p in places}
        tick()
        r = result(call)
        moved = []
        for p in places:
            s, b = os.fstat(held[p]), before[p]
            words = [w for w, x, y in [("m", s.st_mtime_ns, b.st_mtime_ns), ("c", s.st_ctime_ns, b.st_ctime_ns)] if x != y]
            if words:
                moved.append(p + ":" + "".join(words))
            os.close(held[p])
        say(what, "->", r if isinstance(r, (str, int)) and not isinstance(r, bool) else "ok", *moved)
        if os.path.isdir("d/x") and os.path.exists("d/x/keep"):
            os.rename("d/x", "d2")


def put_at(path, data, at):
    with_fd(path, lambda f: os.pwrite(f, data, at))


def with_fd(path, act):
    fd = os.open(path, os.O_RDWR)
    try:
        act(fd)
    finally:
        os.close(fd)


def map_write(fd):
    with mmap.mmap(fd, 4096) as m:
        m[10] = 1
        m.flush()


@case
def written_times_last():
    """A time that is set is not overwritten by pages that are written back later."""
    fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"x" * 100000)
    os.utime("f", ns=(11, 22))
    say(times("f")[:2])
    os.fsync(fd)
    say(times("f")[:2])
    os.close(fd)
    say(times("f")[:2])
    fd = os.open("f", os.O_RDWR)
    os.write(fd, b"y")
    os.utime(fd, ns=(33, 44))
    os.close(fd)
    say(times("f")[:2])


@case
def file_size_limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
    show("write up to it", os.pwrite, fd, b"x" * 20000, 0)
    show("write behind it", os.pwrite, fd, b"x", 10000)
    show("truncate behind it", os.ftruncate, fd, 10001)
    show("allocate behind it", fallocate, fd, 0, 0, 10001)
    show("write at its end", os.pwrite, fd, b"xyz", 9999)
    say(looks("f"))
