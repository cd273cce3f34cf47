"""A random walk: calls on a handful of names, by root and by two users, in an order that a seed
gives. The same seed makes the same calls everywhere."""

import random
from support import *

NAMES = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "s", "d/s"]
MODES = [0, 0o400, 0o600, 0o644, 0o666, 0o700, 0o755, 0o777, 0o1777, 0o2755, 0o2775, 0o4755, 0o6777, 0o2644]
USERS = [(0, 0, ()), (ALICE, ALICE, ()), (BOB, BOB, (SHARED,)), (ALICE, SHARED, ())]
ACLS = [
    acl(("u", 7), ("g", 5), ("o", 1)),
    acl(("u", 6), ("U", 7, ALICE), ("g", 4), ("m", 6), ("o", 0)),
    acl(("u", 7), ("g", 0), ("G", 7, SHARED), ("m", 7), ("o", 4)),
    acl(),
]
OPEN = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR]
EXTRA = [0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_CREAT | os.O_TRUNC, os.O_NOFOLLOW, os.O_DIRECTORY]


def a_call(rng):
    """A call and its words: all choices are made here, whatever comes of it."""
    p, q = rng.choice(NAMES), rng.choice(NAMES)
    mode, n = rng.choice(MODES), rng.randrange(200_000)
    data = bytes([rng.randrange(256)]) * rng.randrange(1, 70_000)
    who = rng.choice([-1, 0, ALICE, BOB, SHARED]), rng.choice([-1, 0, ALICE, BOB, SHARED])
    flags, extra, rename = rng.choice(OPEN), rng.choice(EXTRA), rng.choice([0, 0, NOREPLACE, EXCHANGE, WHITEOUT])
    attribute = rng.choice(["user.a", "trusted.a", "security.a", CAPABILITY, ACCESS, DEFAULT])
    value = rng.choice(ACLS) if "acl" in attribute else SOME_CAPABILITY if attribute == CAPABILITY else data[:100]
    how = rng.choice([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
    kind = rng.choice([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
    falloc = rng.choice([0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP])

    def fd_call(act, opening=flags | extra | os.O_NONBLOCK):
        def call():
            fd = os.open(p, opening, mode)
            try:
                return act(fd)
            finally:
                os.close(fd)
        return call

    calls = [
        ("open %x %x" % (flags, extra), fd_call(lambda fd: None)),
        ("write %d at %d" % (len(data), n), fd_call(lambda fd: os.pwrite(fd, data, n))),
        ("append %d" % len(data), fd_call(lambda fd: os.write(fd, data), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)),
        ("read", fd_call(lambda fd: os.pread(fd, 50, n))),
        ("fsync", fd_call(os.fsync)),
        ("fallocate %d %d" % (falloc, n), fd_call(lambda fd: fallocate(fd, falloc, n, len(data)), os.O_WRONLY | os.O_NONBLOCK)),
        ("mkdir %o" % mode, lambda: os.mkdir(p, mode)), ("mkdir again", lambda: os.mkdir(p, mode | 0o700)),
        ("rmdir", lambda: os.rmdir(p)), ("unlink", lambda: os.unlink(p)),
        ("rename %s %d" % (q, rename), lambda: renameat2(p, q, rename)),
        ("link %s" % q, lambda: os.link(p, q, follow_symlinks=False)), ("symlink %s" % q, lambda: os.symlink(q, p)),
        ("mknod %o %o" % (kind, mode), lambda: os.mknod(p, kind | mode, 0)),
        ("chmod %o" % mode, lambda: os.chmod(p, mode)), ("chmod more", lambda: os.chmod(p, mode | 0o700)),
        ("chown %d %d" % who, lambda: os.chown(p, *who)), ("lchown %d %d" % who, lambda: os.lchown(p, *who)),
        ("truncate %d" % n, lambda: os.truncate(p, n)), ("utime", lambda: os.utime(p, ns=(n, n + 1))),
        ("setxattr %s %d" % (attribute, how), lambda: os.setxattr(p, attribute, value, how)),
        ("getxattr %s" % attribute, lambda: os.getxattr(p, attribute)),
        ("listxattr", lambda: sorted(os.listxattr(p))), ("removexattr %s" % attribute, lambda: os.removexattr(p, attribute)),
        ("list", lambda: sorted(os.listdir(p))), ("readlink", lambda: os.readlink(p)), ("access %o" % (mode >> 6 & 7), lambda: os.access(p, mode >> 6 & 7)),
        ("stat", lambda: oct(os.stat(p).st_mode)),
        ("copy from %s" % q, fd_call(lambda fd: copy(q, fd, n), os.O_WRONLY | os.O_NONBLOCK)),
    ]
    what, call = calls[rng.randrange(len(calls))]
    return p, what, call


def copy(source, fd, length):
    src = os.open(source, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.copy_file_range(src, fd, length)
    finally:
        os.close(src)


def walk(top, seed, steps):
    os.makedirs(top, exist_ok=True)
    os.chdir(top)
    os.umask(0o022)
    os.chmod(".", 0o777)
    rng = random.Random(seed)
    for n in range(steps):
        uid, gid, groups = rng.choice(USERS)
        umask = rng.choice([0o022, 0, 0o077])
        p, what, call = a_call(rng)
        if uid != 0 and what.endswith("chown -1 -1"):
            # By a stranger it is refused, and the kernel has removed file capabilities before it asks a
            # FUSE filesystem. Others' are in the tables.
            continue
        try:
            # The real ids stay root's, so that the way back is open.
            os.setgroups(list(groups))
            os.setegid(gid)
            os.seteuid(uid)
            os.umask(umask)
            value = result(call)
        finally:
            os.seteuid(0)
            os.setegid(0)
        say(n, "%d:%d" % (uid, gid), p, what, "->", value)
        if n % 10 == 9:
            tree()
