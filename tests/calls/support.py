"""What the tables of calls are written with: a transcript of results that two filesystems can be
compared by. Nothing in it may differ between two filesystems that behave alike (no inode numbers, no
times of day, no order of a directory)."""

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import time
import traceback

libc = ctypes.CDLL(None, use_errno=True)
OFF = ctypes.c_int64

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_FOLLOW = 0x400
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64

# Two users without any right of root; they share the group SHARED.
ALICE, BOB, SHARED = 60001, 60002, 60010

CASES = []


def case(function):
    """Registers a function as one table; it runs in a process and a directory of its own."""
    CASES.append(function)
    return function


def say(*words):
    print(*words)


def name_of(error):
    return errno.errorcode.get(error, str(error))


def result(call, *args, **kw):
    """What a call gives, or the name of its error."""
    try:
        value = call(*args, **kw)
    except OSError as e:
        return name_of(e.errno)
    except OverflowError:
        return "OverflowError"
    return "ok" if value is None else value


def show(what, call, *args, **kw):
    """One line of the transcript."""
    value = result(call, *args, **kw)
    say(what, "->", value)
    return value


def checked(value, *_):
    if value < 0:
        raise OSError(ctypes.get_errno(), "")
    return value


def renameat2(old, new, flags, olddir=AT_FDCWD, newdir=AT_FDCWD):
    checked(libc.renameat2(olddir, os.fsencode(old), newdir, os.fsencode(new), flags))


def linkat(old, new, flags=0, olddir=AT_FDCWD):
    checked(libc.linkat(olddir, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def fallocate(fd, mode, offset, length):
    checked(libc.fallocate(fd, mode, OFF(offset), OFF(length)))


def xattr_size(path, name, size):
    """getxattr into a buffer of `size` bytes."""
    buf = ctypes.create_string_buffer(max(size, 1))
    return checked(libc.getxattr(os.fsencode(path), os.fsencode(name), buf, size))


def sockaddr(path):
    return "./" + path


def put(path, data=b"x", mode=0o644):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, data if isinstance(data, bytes) else data.encode())
    os.close(fd)
    os.chmod(path, mode)


def get(path):
    with open(path, "rb") as f:
        return f.read()


def be(uid, gid=None, groups=()):
    """Become another user, for the rest of the process."""
    os.setgroups(list(groups))
    gid = uid if gid is None else gid
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def as_user(uid, function, *args, gid=None, groups=()):
    """Runs `function` in a child that is another user (0 = still root)."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if uid:
                be(uid, gid, groups)
            function(*args)
            sys.stdout.flush()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        say("a child ended with", status)


def looks(path, times=False):
    """What stat says that is the filesystem's own doing."""
    try:
        s = os.lstat(path)
    except OSError as e:
        return name_of(e.errno)
    kind = stat.filemode(s.st_mode)[0]
    words = [kind, "%04o" % stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid, "n%d" % s.st_nlink]
    if kind in "-l":
        words.append("s%d" % s.st_size)
    if kind in "bc":
        words.append("%d:%d" % (os.major(s.st_rdev), os.minor(s.st_rdev)))
    return " ".join(str(w) for w in words)


def tree(top=b"."):
    """Everything below, sorted: names, attributes, targets, content, attributes with names."""
    lines = []

    def walk(path):
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            full = entry.path
            kind = "d" if entry.is_dir(follow_symlinks=False) else "l" if entry.is_symlink() else "o"
            line = [repr(full)[1:], kind, looks(full)]
            if entry.is_symlink():
                line.append(repr(os.readlink(full))[1:])
            elif entry.is_file(follow_symlinks=False):
                data = get(full)
                line.append("%d:%s" % (len(data), data[:40]))
            if not entry.is_symlink():
                for attribute in sorted(os.listxattr(full, follow_symlinks=False)):
                    value = os.getxattr(full, attribute, follow_symlinks=False)
                    line.append("%s=%s" % (attribute, value.hex()))
            lines.append(" ".join(line))
            if kind == "d":
                walk(full)

    walk(top)
    for line in lines:
        say("   ", line)


def acl(*entries):
    """The value of a `system.posix_acl_*` attribute: (tag, permissions, id) each; `u`, `g`, `o`
    without an id are the owner, the group and the others, `m` the mask."""
    tags = {"u": 0x01, "U": 0x02, "g": 0x04, "G": 0x08, "m": 0x10, "o": 0x20}
    out = struct.pack("<I", 2)
    for tag, perm, *who in entries:
        out += struct.pack("<HHI", tags[tag], perm, who[0] if who else 0xFFFFFFFF)
    return out


ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = "security.capability"
# cap_net_raw+ep, revision 2
SOME_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def tick():
    """Longer than the coarsest clock of a filesystem."""
    time.sleep(0.012)


def flock(kind, start=0, length=0):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def run(function, top):
    """One table, in its own directory and process."""
    os.makedirs(os.path.join(top, function.__name__), mode=0o755)
    say("##", function.__name__)

    def inside():
        os.umask(0o022)
        os.chdir(os.path.join(top, function.__name__))
        os.chmod(".", 0o777)
        function()

    as_user(0, inside)
    sys.stdout.flush()


__all__ = [n for n in dir() if not n.startswith("__")]
