"""The filesystems that iozone/bench compares: how each is set up, emptied of what it remembers, and taken down."""
import os, pathlib, platform, re, shutil, socket, subprocess, time

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parent


class Missing(Exception):
    """A program is not installed; says which package has it."""


def sh(*command, **kw):
    """Runs a command to its end, ten minutes at most; a failure is an error with its output."""
    kw.setdefault("timeout", 600)
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed ({done.returncode}): {done.stdout[-1500:]}")
    return done.stdout


def need(program, package):
    if not shutil.which(program):
        raise Missing(f"{program} is missing: apt-get install {package}")


def drop_kernel_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


def cpu_seconds(pids):
    """CPU time of processes so far, user and system."""
    total = 0
    for pid in pids:
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / os.sysconf("SC_CLK_TCK")


def wait_mounted(path, on=True):
    end = time.monotonic() + 60
    while os.path.ismount(path) != on:
        if time.monotonic() > end:
            raise RuntimeError(f"{path} is {'not ' if on else 'still '}mounted after 60 s")
        time.sleep(0.05)


def machine():
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) >> 20
    return f"{os.cpu_count()}x {cpu[1] if cpu else platform.machine()}, {memory} GiB, Linux {platform.release()}"


def commit():
    done = subprocess.run(["git", "-C", REPO, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() or "unknown"


class System:
    """A directory to measure. `dir` is valid between start and stop; `label` heads its column."""

    def __init__(self, base):
        self.base = base / self.name
        self.dir = self.base / "mnt"

    def start(self):
        self.dir.mkdir(parents=True)

    def before(self):
        """Called before each stage."""

    def settle(self):
        """Called after each stage: waits for what it left to be done in the background, which would slow the others."""

    def forget(self):
        """Empties the kernel's caches, and those of the client process, where it has any."""
        drop_kernel_caches()

    def pids(self):
        """Processes that do the work, to sum up their CPU time."""
        return []

    def stop(self):
        shutil.rmtree(self.base, ignore_errors=True)


class Disk(System):
    name, label = "disk", "the disk's own filesystem"


class Mounted(System):
    """One whose client is a process that `mount` starts and umount(8) ends, with what it remembers."""

    def forget(self):
        sh("umount", self.dir)
        drop_kernel_caches()
        self.mount()

    def stop(self):
        if os.path.ismount(self.dir):
            sh("umount", self.dir)
        super().stop()


class PassThrough(Mounted):
    """bindfs: what FUSE costs when the other side is a local directory."""
    name, label = "passthrough", "FUSE pass-through (bindfs)"

    def start(self):
        need("bindfs", "bindfs")
        super().start()
        (self.base / "below").mkdir()
        self.mount()

    def mount(self):
        sh("bindfs", "-o", "attr_timeout=3600,entry_timeout=3600", self.base / "below", self.dir)
        wait_mounted(self.dir)


class Gluster(Mounted):
    """GlusterFS, replica 3, bricks on the same disk, daemons bound to loopback."""
    name, label = "gluster", "GlusterFS replica 3"

    def start(self):
        need("glusterd", "glusterfs-server")
        need("mount.glusterfs", "glusterfs-client")
        super().start()
        self.host = socket.gethostname()
        if socket.gethostbyname(self.host).split(".")[0] != "127":
            raise Missing(f"GlusterFS needs {self.host} to resolve to 127.0.0.1: add it to /etc/hosts")
        work = self.base / "work"
        for d in (work, *(self.base / f"brick{i}" for i in range(3))):
            d.mkdir()
        vol = self.base / "glusterd.vol"
        vol.write_text("volume management\n    type mgmt/glusterd\n"
                       f"    option working-directory {work}\n    option transport-type socket\n"
                       "    option transport.socket.bind-address 127.0.0.1\n    option transport.socket.listen-port 24007\n"
                       "    option ping-timeout 0\nend-volume\n")
        sh("glusterd", "-f", vol, "-p", self.base / "glusterd.pid", "-l", self.base / "glusterd.log")
        bricks = [f"{self.host}:{self.base}/brick{i}/b" for i in range(3)]
        end = time.monotonic() + 30
        while subprocess.run(["gluster", "--mode=script", "pool", "list"], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, timeout=60).returncode:
            if time.monotonic() > end:
                raise RuntimeError(f"glusterd does not answer, see {self.base}/glusterd.log")
            time.sleep(0.5)
        sh("gluster", "--mode=script", "volume", "create", "tercetbench", "replica", "3", *bricks, "force")
        sh("gluster", "--mode=script", "volume", "start", "tercetbench")
        self.mount()

    def mount(self):
        sh("mount", "-t", "glusterfs", f"{self.host}:/tercetbench", self.dir)
        wait_mounted(self.dir)

    def stop(self):
        if os.path.ismount(self.dir):
            sh("umount", self.dir)
        pid = self.base / "glusterd.pid"
        if pid.exists():
            for words in (("volume", "stop", "tercetbench", "force"), ("volume", "delete", "tercetbench")):
                subprocess.run(["gluster", "--mode=script", *words], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, timeout=120)
            # The self-heal daemon is a child of the volume; it goes with "volume stop".
            os.kill(int(pid.read_text()), 15)
        super().stop()


class Tercet(System):
    """A volume of its own with one node per bank, all on this disk."""
    name, label = "tercet", "tercet"
    ports = "17000 18000 19000"

    def start(self):
        self.env = os.environ | {"TERCET_DIR": str(self.base), "TERCET_PORT_BASES": self.ports}
        self.bin = pathlib.Path(os.environ.get("TERCET_BIN_DIR", REPO / "target/release"))
        self.launch()

    def launch(self):
        sh(REPO / "scripts/launch", "1", self.dir, env=self.env, timeout=1800)
        wait_mounted(self.dir)

    def kill(self, *what):
        sh(REPO / "scripts/kill", *what, env=self.env)

    def tercet(self, *words):
        sh(self.bin / "tercet", "--config", self.base / "tercet.toml", *words)

    def forget(self):
        self.tercet("umount", self.dir)
        wait_mounted(self.dir, on=False)
        drop_kernel_caches()
        self.tercet("mount", self.dir)
        wait_mounted(self.dir)

    def settle(self):
        end = time.monotonic() + 300
        while True:
            try:
                return self.tercet("status", "--check")
            except RuntimeError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    def pids(self):
        return [p.read_text().split()[0] for p in (self.base / "run").glob("*.pid")]

    def stop(self):
        if self.base.exists():
            self.kill()
        super().stop()


class TercetDown(Tercet):
    name, label = "tercet-down", "tercet, one bank down"
    ports = "17100 18100 19100"

    def start(self):
        super().start()
        self.kill("bank", "B")

    def settle(self):
        pass    # it never will


class TercetRefill(Tercet):
    """Bank B is emptied before each stage and refilled, at the default pace, while it runs."""
    name, label = "tercet-refill", "tercet, one bank refilling"
    ports = "17200 18200 19200"
    ballast_mib = 2048

    def start(self):
        super().start()
        block = os.urandom(1 << 20)
        with open(self.dir / "ballast", "wb") as f:
            for i in range(self.ballast_mib):
                f.write(i.to_bytes(8, "little") + block[8:])
            os.fsync(f.fileno())
        self.settle()

    def before(self):
        self.kill("bank", "B")
        shutil.rmtree(self.base / "nodes/b0")
        self.launch()


class Stub(Tercet):
    """tercet's own FUSE adapter and filesystem core over a map in memory: the ceiling."""
    name, label = "stub", "in-memory stub (ceiling)"
    ports = "17300 18300 19300"

    def start(self):
        super().start()
        # launch has built the programs and made a configuration; the nodes are not needed.
        self.kill()
        self.tercet("mount", "--memory=1", self.dir)
        wait_mounted(self.dir)

    def forget(self):
        drop_kernel_caches()   # a remount would lose everything

    def settle(self):
        pass    # it has no banks

    def stop(self):
        if os.path.ismount(self.dir):
            self.tercet("umount", self.dir)
            wait_mounted(self.dir, on=False)
        super().stop()


ALL = {s.name: s for s in (Disk, PassThrough, Stub, Gluster, Tercet, TercetDown, TercetRefill)}
