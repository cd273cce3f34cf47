"""Calls on content: reading, writing, sizes, holes, copies, mappings."""

import hashlib
import mmap
import subprocess
from support import *

# Holes are told apart in units of this size on both filesystems.
UNIT = 64 << 10
END = (1 << 63) - 1


def opened(path, flags=os.O_RDWR | os.O_CREAT, mode=0o644):
    return os.open(path, flags, mode)


def digest(path):
    data = get(path)
    return len(data), hashlib.sha256(data).hexdigest()[:12]


@case
def reading_and_writing():
    fd = opened("f")
    show("write", os.write, fd, b"0123456789")
    show("pread", os.pread, fd, 5, 3)
    show("pread behind the end", os.pread, fd, 5, 10)
    show("pread over the end", os.pread, fd, 50, 8)
    show("pread at a negative offset", os.pread, fd, 5, -1)
    show("pwrite at a negative offset", os.pwrite, fd, b"x", -1)
    show("pwrite far", os.pwrite, fd, b"far", 5_000_000)
    say(digest("f"))
    show("read nothing", os.read, fd, 0)
    show("write nothing far", os.pwrite, fd, b"", 10_000_000)
    say(looks("f"))
    show("writev", os.writev, fd, [b"a", b"", b"bc"])
    show("seek end", os.lseek, fd, -5, os.SEEK_END)
    show("seek before the start", os.lseek, fd, -6_000_000, os.SEEK_CUR)
    show("seek nonsense", os.lseek, fd, 0, 9)
    r, w = opened("f", os.O_RDONLY), opened("f", os.O_WRONLY)
    show("write to a reader", os.write, r, b"x")
    show("read from a writer", os.read, w, 1)
    p = opened("f", os.O_PATH)
    show("read from a path", os.read, p, 1)
    show("sync_file_range", lambda: checked(libc.sync_file_range(fd, OFF(0), OFF(0), 7)))
    for advice in range(6):
        show("fadvise %d" % advice, os.posix_fadvise, fd, 0, 0, advice)
    show("readahead", lambda: checked(libc.readahead(fd, OFF(0), 4096)))
    show("fsync", os.fsync, fd)
    show("fdatasync", os.fdatasync, r)
    show("fsync of a path", os.fsync, p)
    show("syncfs", lambda: checked(libc.syncfs(fd)))
    d = os.open(".", os.O_RDONLY)
    show("fsync of a directory", os.fsync, d)
    show("fdatasync of a directory", os.fdatasync, d)
    show("preadv2 of what is cached", lambda: os.preadv(r, [bytearray(4)], 0, os.RWF_NOWAIT if 0 else 0))
    show("pwritev2 synced", lambda: os.pwritev(fd, [b"zz"], 1, os.RWF_DSYNC))
    show("pwritev2 appending", lambda: os.pwritev(fd, [b"end"], 0, 0x10))
    say(digest("f"))
    out = opened("out")
    show("sendfile", os.sendfile, out, r, 2, 30)
    rp, wp = os.pipe()
    show("splice out", os.splice, r, wp, 20, 0)
    show("splice in", os.splice, rp, out, 20, None, 100)
    say(digest("out"))


@case
def sizes():
    fd = opened("f")
    os.write(fd, b"d" * 100_000)
    for n in [0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 99_999, 1 << 20, (1 << 20) + 1, 1 << 32, 1 << 40, 12345, -1]:
        show("ftruncate %d" % n, os.ftruncate, fd, n)
        say("    ", looks("f"))
        if n < 1 << 21:
            say("    ", digest("f"))
    os.ftruncate(fd, 10)
    os.ftruncate(fd, 200_000)
    say(digest("f"))
    show("by a reader", os.ftruncate, opened("f", os.O_RDONLY), 1)
    show("by name", os.truncate, "f", 7)
    show("negative by name", os.truncate, "f", -1)
    os.mkdir("d")
    show("a directory", os.truncate, "d", 0)
    os.symlink("f", "s")
    show("through a symlink", os.truncate, "s", 3)
    show("a dangling one", lambda: (os.symlink("none", "dang"), os.truncate("dang", 3)))
    say(looks("f"))
    show("at the last offset", os.pwrite, fd, b"x", END)


@case
def allocation():
    for mode in [0, KEEP, PUNCH, PUNCH | KEEP, ZERO, ZERO | KEEP, PUNCH | ZERO | KEEP, 4, 4 | KEEP, 1 << 20,
                 PUNCH | 1 << 20]:
        for offset, length in [(0, 0), (0, 1), (0, -1), (-1, 10), (5, 20), (4000, 200), (0, 100_000), (65_536, 65_536),
                               (65_000, 70_000), (150_000, 100_000), (400_000, 10), (END, 1), (END - 5, 10)]:
            fd = opened("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.write(fd, bytes(range(1, 251)) * 800)
            show("%d %d %d" % (mode, offset, length), fallocate, fd, mode, offset, length)
            say("    ", digest("f"))
            os.close(fd)
    show("by a reader", lambda: fallocate(opened("f", os.O_RDONLY), 0, 0, 10))
    show("by a path", lambda: fallocate(opened("f", os.O_PATH), 0, 0, 10))
    show("appending", lambda: fallocate(opened("f", os.O_WRONLY | os.O_APPEND), PUNCH | KEEP, 0, 10))
    show("posix_fallocate", lambda: os.posix_fallocate(opened("f"), 0, 300_000))
    say(digest("f"))


def map_of(fd):
    """Where data and holes are, as the kernel tells it."""
    at, out = 0, []
    size = os.fstat(fd).st_size
    while at < size:
        start = result(os.lseek, fd, at, os.SEEK_DATA)
        if isinstance(start, str):
            out.append((start,))
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        out.append((start, end))
        at = end
    return out


@case
def holes():
    """With what is dirty still in the page cache, and after it was written."""
    for synced in [False, True]:
        for closed in [False, True]:
            fd = opened("f-%d-%d" % (synced, closed))

            def then():
                nonlocal fd
                if synced:
                    os.fsync(fd)
                if closed:
                    os.close(fd)
                    fd = opened("f-%d-%d" % (synced, closed))
                say("   ", map_of(fd))

            then()
            os.ftruncate(fd, 20 * UNIT)
            then()
            os.pwrite(fd, b"x" * UNIT, 3 * UNIT)
            then()
            os.pwrite(fd, b"x" * (2 * UNIT), 10 * UNIT)
            then()
            os.pwrite(fd, b"x" * UNIT, 19 * UNIT)
            then()
            fallocate(fd, PUNCH | KEEP, 10 * UNIT, UNIT)
            then()
            fallocate(fd, PUNCH | KEEP, 3 * UNIT, UNIT)
            then()
            os.ftruncate(fd, 15 * UNIT)
            then()
            os.ftruncate(fd, 30 * UNIT)
            then()
            for at in [0, UNIT, 11 * UNIT, 11 * UNIT + 5, 12 * UNIT, 30 * UNIT - 1, 30 * UNIT, 31 * UNIT, -1]:
                show("data %d" % at, os.lseek, fd, at, os.SEEK_DATA)
                show("hole %d" % at, os.lseek, fd, at, os.SEEK_HOLE)
            say(digest("f-%d-%d" % (synced, closed)))
    fd = opened("mapped")
    os.ftruncate(fd, 8 * UNIT)
    with mmap.mmap(fd, 8 * UNIT) as m:
        m[2 * UNIT:3 * UNIT] = b"m" * UNIT
        say("dirty through a mapping", map_of(fd))
        say("and for another", map_of(opened("mapped", os.O_RDONLY)))
    subprocess.check_call(["cp", "--sparse=auto", "mapped", "copy"])
    say(digest("mapped") == digest("copy"), map_of(opened("copy", os.O_RDONLY)))
    show("of a path", os.lseek, opened("mapped", os.O_PATH), 0, os.SEEK_DATA)
    say("empty", map_of(opened("empty")), result(os.lseek, opened("empty"), 0, os.SEEK_HOLE))


@case
def copies():
    a, b = opened("a"), opened("b")
    os.write(a, bytes(range(256)) * 1000)
    cfr = os.copy_file_range
    show("all", cfr, a, b, 256_000, 0, 0)
    say(digest("b"))
    show("behind the end", cfr, a, b, 10, 256_000, 0)
    show("over the end", cfr, a, b, 1000, 255_990, 0)
    show("nothing", cfr, a, b, 0, 0, 0)
    show("to a far place", cfr, a, b, 500, 77, 1_000_003)
    say(digest("b"))
    show("within, apart", cfr, a, a, 1000, 0, 5000)
    show("within, touching", cfr, a, a, 1000, 0, 1000)
    show("within, overlapping", cfr, a, a, 1000, 0, 999)
    show("within, the same", cfr, a, a, 1000, 0, 0)
    show("within, overlapping by its end", cfr, a, a, 1 << 40, 0, 255_999)
    say(digest("a"))
    show("endless", cfr, a, b, 1 << 50, 0, 0)
    say(digest("b"))
    os.lseek(a, 100, os.SEEK_SET)
    os.lseek(b, 200, os.SEEK_SET)
    show("by position", cfr, a, b, 50)
    say(os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR))
    show("from a writer", cfr, opened("a", os.O_WRONLY), b, 10)
    show("to a reader", cfr, a, opened("b", os.O_RDONLY), 10)
    show("to an appender", cfr, a, opened("b", os.O_WRONLY | os.O_APPEND), 10)
    show("from a directory", cfr, os.open(".", os.O_RDONLY), b, 10)
    os.mkfifo("p")
    show("to a fifo", cfr, a, os.open("p", os.O_RDWR), 10)
    r, w = os.pipe()
    show("to a pipe", cfr, a, w, 10)
    show("flags", lambda: checked(libc.copy_file_range(a, None, b, None, 10, 1)))
    show("to a far offset", cfr, a, b, 10, 0, 1 << 40)
    os.ftruncate(b, 256_000)
    c = opened("sparse")
    os.ftruncate(c, 10 * UNIT)
    os.pwrite(c, b"s" * UNIT, 4 * UNIT)
    d = opened("sparse2")
    left = 10 * UNIT
    while left and (n := cfr(c, d, left)):
        left -= n
    say(digest("sparse") == digest("sparse2"))
    # What is dirty in the cache of either is in the copy.
    with mmap.mmap(a, 4096) as m:
        m[0:5] = b"dirty"
        show("dirty source", cfr, a, b, 5, 0, 3)
    with mmap.mmap(b, 4096) as m:
        show("seen in a mapping", lambda: m[0:10])
        m[0:2] = b"!!"
        cfr(a, b, 1, 10, 1)
        show("beside what is dirty", lambda: m[0:6])
    say(digest("b"))


@case
def mappings():
    fd = opened("f")
    os.write(fd, b"f" * 10_000)
    m = mmap.mmap(fd, 10_000)
    m[100:105] = b"share"
    show("read sees it", os.pread, fd, 5, 100)
    os.pwrite(fd, b"WRITE", 200)
    say("the mapping sees", m[200:205])
    private = mmap.mmap(fd, 10_000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    private[300:304] = b"mine"
    show("nobody sees", os.pread, fd, 4, 300)
    os.pwrite(fd, b"late", 300)
    say("private keeps", private[300:304])
    pid = os.fork()
    if pid == 0:
        other = mmap.mmap(os.open("f", os.O_RDWR), 10_000)
        other[400:405] = b"child"
        os._exit(0 if other[100:105] == b"share" else 1)
    say("child", os.waitpid(pid, 0)[1], m[400:405])
    show("flush", m.flush)
    say(digest("f"))
    show("write through a reader", lambda: mmap.mmap(opened("f", os.O_RDONLY), 100, prot=mmap.PROT_WRITE))
    show("private of a reader", lambda: len(mmap.mmap(opened("f", os.O_RDONLY), 100, flags=mmap.MAP_PRIVATE,
                                                      prot=mmap.PROT_READ | mmap.PROT_WRITE)))
    show("of a writer", lambda: mmap.mmap(opened("f", os.O_WRONLY), 100, prot=mmap.PROT_READ))
    os.ftruncate(fd, 5000)
    say("after truncation", m[4990:5000], m[5000:5004], m[8191:8192])
    os.ftruncate(fd, 10_000)
    say("after growth", m[4998:5004], m[9998:10_000])
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.ftruncate(fd, 4096)
        m[5000]
        os._exit(0)
    say("behind the end", os.waitpid(pid, 0)[1])
    # A hole that is written through a mapping.
    h = opened("h")
    os.ftruncate(h, 1 << 20)
    with mmap.mmap(h, 1 << 20) as m:
        m[500_000] = 65
    os.fsync(h)
    say(digest("h"))
    os.unlink("f")
    say("unlinked", private[300:304], m.closed)


@case
def direct():
    fd = opened("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    block = mmap.mmap(-1, 1 << 20)
    block.write(bytes(range(256)) * 4096)
    show("write", os.write, fd, block)
    show("read", lambda: os.preadv(fd, [block], 0))
    show("read over the end", lambda: os.preadv(fd, [block], (1 << 20) - 4096))
    buffered = opened("f", os.O_RDWR)
    os.pwrite(buffered, b"buffered", 4096)
    os.preadv(fd, [block], 0)
    say("direct sees", block[4096:4104])
    block[0:6] = b"direct"
    os.pwritev(fd, [memoryview(block)[:4096]], 8192)
    show("buffered sees", os.pread, buffered, 6, 8192)
    m = mmap.mmap(fd, 4096)
    m[0:3] = b"map"
    os.preadv(fd, [memoryview(block)[:4096]], 0)
    say("direct sees the mapping", block[0:3])
    os.ftruncate(fd, 100)
    show("a short tail", lambda: os.preadv(fd, [memoryview(block)[:4096]], 0))
    say(digest("f"))


@case
def appending():
    """Many processes, none loses a byte of another."""
    lines, writers = 300, 4
    pids = []
    for w in range(writers):
        pid = os.fork()
        if pid == 0:
            fd = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for n in range(lines):
                line = b"%d:%d:%s\n" % (w, n, b"x" * (n % 200))
                if os.write(fd, line) != len(line):
                    os._exit(1)
                if n % 50 == 0:
                    os.fsync(fd)
            os._exit(0)
        pids.append(pid)
    say([os.waitpid(p, 0)[1] for p in pids])
    seen = {}
    for line in get("log").splitlines():
        w, n, x = line.split(b":")
        say("torn", line) if len(x) != int(n) % 200 else seen.setdefault(int(w), []).append(int(n))
    for w in sorted(seen):
        say(w, seen[w] == list(range(lines)))
    fd = os.open("log2", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, b"one")
    show("pwrite of an appender", os.pwrite, fd, b"two", 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"three")
    say(get("log2"))
    import fcntl as f
    other = os.open("log2", os.O_WRONLY)
    f.fcntl(other, f.F_SETFL, os.O_APPEND)
    os.write(other, b"four")
    f.fcntl(fd, f.F_SETFL, 0)
    os.pwrite(fd, b"ONE", 0)
    say(get("log2"))
