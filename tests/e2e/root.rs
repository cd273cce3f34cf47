//! What the root filesystem of a container needs beside correct calls (those are in `same.rs`): mount
//! options, loop devices on files, and syncs that reach the banks.

use cluster::process::run;
use cluster::programs::programs;
use cluster::reference::{mkfs_ext4, mount_loop, needs};
use cluster::{Bank, Cluster, Setup};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

/// Options of the mount and of its superblock, as /proc/self/mountinfo shows them.
fn options_of(mountpoint: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line =
        table.lines().find(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p) == mountpoint));
    let (left, right) = line.and_then(|l| l.split_once(" - ")).expect("mounted");
    let field = |text: &str, n: usize| text.split(' ').nth(n).unwrap_or_default().to_owned();
    format!(",{},{},", field(left, 5), field(right, 2))
}

/// Reads a file from the mount, not from the page cache.
fn read_cold(path: &Path) -> fs::Metadata {
    let file = File::open(path).expect("open");
    file.sync_all().expect("fsync");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
    fs::read(path).expect("read");
    // An attribute that may be old is asked for again.
    file.metadata().expect("stat")
}

#[test]
fn mount_options_do_what_they_say() {
    let mut cluster = Cluster::start("options", Setup::default());
    let (file, null, program) = (cluster.path("f"), cluster.path("null"), cluster.path("true"));
    fs::write(&file, vec![7; 100_000]).expect("write");
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, &null, FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3))
        .expect("mknod");
    fs::copy("/bin/true", &program).expect("cp");
    assert!(options_of(&cluster.mountpoint()).contains(",rw,"));
    File::open(&null).expect("devices work without nodev");

    cluster.unmount();
    cluster.mount_with(&["-o", "nodev,nosuid,noexec,noatime"]);
    let shown = options_of(&cluster.mountpoint());
    for option in ["nodev", "nosuid", "noexec", "noatime"] {
        assert!(shown.contains(&format!(",{option},")), "{option}: {shown}");
    }
    assert_eq!(errno(File::open(&null)), Some(13), "nodev");
    assert_eq!(errno(Command::new(&program).status()), Some(13), "noexec");
    let before = fs::metadata(&file).expect("stat").atime_nsec();
    assert_eq!(read_cold(&file).atime_nsec(), before, "noatime");

    cluster.unmount();
    cluster.mount_with(&["-o", "strictatime"]);
    let marks = [0, 1, 2].map(|_| {
        let about = read_cold(&file);
        (about.atime(), about.atime_nsec())
    });
    assert!(marks.is_sorted_by(|a, b| a < b), "strictatime: {marks:?}");

    for dir in [&cluster.root, &cluster.mountpoint()] {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("chmod");
    }
    let a_stranger_gets = |path: &Path| {
        run(Command::new("stat").arg(path).uid(65_534).gid(65_534), Duration::from_secs(20))
    };
    a_stranger_gets(&file).assert_ok();
    cluster.unmount();
    cluster.mount_with(&["-o", "noallow_other"]);
    let said = a_stranger_gets(&file).expect_refusal();
    assert!(said.contains("Permission denied"), "noallow_other: {said}");

    cluster.unmount();
    cluster.mount_with(&["-o", "ro"]);
    assert!(options_of(&cluster.mountpoint()).contains(",ro,"));
    assert_eq!(errno(fs::write(&file, "x")), Some(30), "EROFS");
    assert_eq!(errno(fs::remove_file(&file)), Some(30), "EROFS");
    let said = cluster.tercet(&["mount", "-o", "bind"]).expect_refusal();
    assert!(said.contains("bind"), "{said}");
}

#[test]
fn a_running_mount_takes_new_options_by_the_helper_of_mount() {
    let cluster = Cluster::start("remount", Setup::default());
    let file = cluster.path("f");
    fs::write(&file, "before").expect("write");
    // As mount(8) would call it for `mount -o remount,ro MOUNTPOINT`.
    let helper = cluster.root.join("mount.fuse.tercet");
    std::os::unix::fs::symlink(&programs().tercet, &helper).expect("symlink");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let source = cluster.config().display().to_string();
    assert!(
        table.contains(&format!(" - fuse.tercet {source} ")),
        "the device is the configuration"
    );
    let remount = |options: &str| {
        let mut command = Command::new(&helper);
        command.arg(&source).arg(cluster.mountpoint()).args(["-o", options]);
        run(&mut command, Duration::from_secs(20))
    };
    let fuse = "user_id=0,group_id=0,default_permissions,allow_other";
    let open = File::options().append(true).open(&file).expect("open");
    let said = remount(&format!("rw,relatime,{fuse},remount,ro")).expect_refusal();
    assert!(said.contains("in use") && said.contains("e2e"), "it says by whom: {said}");
    drop(open);
    remount(&format!("rw,relatime,{fuse},remount,ro,nodev")).assert_ok();
    let shown = options_of(&cluster.mountpoint());
    assert!(shown.contains(",ro,") && shown.contains(",nodev,"), "{shown}");
    assert_eq!(errno(fs::write(&file, "x")), Some(30), "EROFS");
    cluster.tercet(&["mount", "-o", "remount,rw"]).assert_ok();
    fs::write(&file, "after").expect("writable again");
    let shown = options_of(&cluster.mountpoint());
    assert!(
        shown.contains(",rw,") && shown.contains(",nodev,"),
        "what is not named stays: {shown}"
    );
}

/// The kernel hands a copy over as one request: no byte comes up to it or goes down from it. (That the
/// mount fetches what it copies once: `fs/tests/smoke.rs`.)
#[test]
fn a_copy_within_the_mount_does_not_pass_the_kernel() {
    const LEN: usize = 24 << 20;
    let mut cluster = Cluster::start("copies", Setup::default());
    let content: Vec<u8> =
        (0..).flat_map(|n| cluster::random::block(9, n, 50_000)).take(LEN).collect();
    fs::write(cluster.path("from"), &content).expect("write");
    cluster.remount();
    let passed = |cluster: &Cluster| {
        let said = cluster.status()["requests"].clone();
        let copies = said["operations"]["copy_file_range"]["requests"].as_u64().unwrap_or(0);
        let bytes = |of: &str| said[of].as_u64().expect("a count");
        (copies, bytes("read_bytes"), bytes("written_bytes"))
    };
    let from = File::open(cluster.path("from")).expect("open");
    let to = File::create_new(cluster.path("to")).expect("create");
    let (_, read_before, written_before) = passed(&cluster);
    let mut left = LEN;
    while left > 0 {
        let n = rustix::fs::copy_file_range(&from, None, &to, None, left).expect("copy_file_range");
        assert!(n > 0, "the copy ends {left} bytes early");
        left -= n;
    }
    to.sync_all().expect("fsync");
    let (copies, read, written) = passed(&cluster);
    assert!(copies >= 2, "at most 16 MiB at once, in {copies} requests");
    assert_eq!((read, written), (read_before, written_before), "bytes went through the kernel");
    assert!(fs::read(cluster.path("to")).expect("read") == content, "the copy differs");
}

#[test]
fn a_file_can_be_a_disk() {
    needs("e2fsck", "e2fsprogs");
    let mut cluster = Cluster::start("loop", Setup::default());
    let (image, inside) = (cluster.path("disk.img"), cluster.root.join("inside"));
    fs::create_dir(&inside).expect("mkdir");
    File::create(&image).and_then(|f| f.set_len(96 << 20)).expect("an image");
    mkfs_ext4(&image);
    let content = |n: u64| cluster::random::block(5, n, 50_000);
    mount_loop(&image, &inside);
    for n in 0..200 {
        fs::write(inside.join(format!("f{n}")), content(n)).expect("write");
    }
    for n in (0..200).step_by(3) {
        fs::remove_file(inside.join(format!("f{n}"))).expect("unlink");
    }
    // A bank away while the disk is written back.
    cluster.kill(Bank::A);
    unmount(&inside, UnmountFlags::empty()).expect("umount");
    let sound = |cluster: &Cluster| {
        let mut fsck = Command::new("e2fsck");
        fsck.args(["-f", "-n"]).arg(cluster.path("disk.img"));
        run(&mut fsck, Duration::from_secs(60)).assert_ok();
    };
    sound(&cluster);
    cluster.start_bank(Bank::A);
    cluster.remount();
    sound(&cluster);
    mount_loop(&image, &inside);
    let wrong: Vec<u64> = (0..200)
        .filter(|n| n % 3 != 0)
        .filter(|&n| fs::read(inside.join(format!("f{n}"))).ok() != Some(content(n)))
        .collect();
    unmount(&inside, UnmountFlags::empty()).expect("umount");
    assert!(wrong.is_empty(), "files inside the disk changed: {wrong:?}");
}

/// Writes a file and syncs it in some way.
type Act<'a> = Box<dyn Fn(&Cluster, &str) + 'a>;

/// Where a bank's log durably ends, as its node says.
fn position(cluster: &Cluster, bank: Bank) -> u64 {
    let said = cluster.nodes()[bank as usize][0].ask(&["status", "--json"]).expect_ok();
    let status: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    status["position"]["position"]["seq"].as_u64().expect("a position")
}

#[test]
fn every_kind_of_sync_reaches_two_banks() {
    needs("python3", "python3");
    // What is not synced stays in the mount, so that a sync that does nothing is seen.
    let limits = "group_timer_ms = 60000\nrefresh_interval_s = 86400\n".to_owned();
    let mut cluster = Cluster::start("syncs", Setup { shards: 1, limits, ..Setup::default() });
    let two_banks = |cluster: &Cluster| {
        let mut ends = Bank::ALL.map(|b| position(cluster, b));
        ends.sort_unstable();
        ends[1]
    };
    let create = |cluster: &Cluster, name: &str, flags: i32| {
        let mut options = File::options();
        let file = options.create(true).truncate(true).read(true).write(true).custom_flags(flags);
        file.open(cluster.path(name)).expect("create")
    };
    let by_python = |code: &'static str| -> Act<'_> {
        Box::new(move |cluster, name| {
            create(cluster, name, 0).set_len(4).expect("truncate");
            let mut python = Command::new("python3");
            let head = "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR)\n";
            python.args(["-c", &format!("{head}{code}")]).arg(cluster.path(name));
            run(&mut python, Duration::from_secs(20)).assert_ok();
        })
    };
    let write = |file: &File| file.write_all_at(b"data", 0).expect("write");
    let kinds: Vec<(&str, Act<'_>)> = vec![
        (
            "fsync",
            Box::new(|c, n| {
                let file = create(c, n, 0);
                write(&file);
                file.sync_all().expect("fsync");
            }),
        ),
        (
            "fdatasync",
            Box::new(|c, n| {
                let file = create(c, n, 0);
                write(&file);
                file.sync_data().expect("fdatasync");
            }),
        ),
        ("O_SYNC", Box::new(|c, n| write(&create(c, n, 0o4_010_000)))),
        ("O_DSYNC", Box::new(|c, n| write(&create(c, n, 0o10_000)))),
        (
            "fsync-of-another",
            Box::new(|c, n| {
                write(&create(c, n, 0));
                // Its pages are the kernel's until then.
                create(c, n, 0).write_all_at(b"data", 0).expect("write");
                File::open(c.path(n)).and_then(|f| f.sync_all()).expect("fsync by a reader");
            }),
        ),
        ("msync", by_python("m = mmap.mmap(fd, 4); m[0:4] = b'data'; m.flush()")),
        ("RWF_DSYNC", by_python("os.pwritev(fd, [b'data'], 0, os.RWF_DSYNC)")),
        (
            "sync-FILE",
            by_python("os.pwrite(fd, b'data', 0); os.execvp('sync', ['sync', sys.argv[1]])"),
        ),
    ];
    for (kind, act) in &kinds {
        let before = two_banks(&cluster);
        act(&cluster, kind);
        assert!(two_banks(&cluster) > before, "{kind} did not reach two banks");
    }
    // A directory: a rename.
    fs::rename(cluster.path("fsync"), cluster.path("renamed")).expect("rename");
    let before = two_banks(&cluster);
    sleep(Duration::from_millis(500));
    assert_eq!(two_banks(&cluster), before, "nothing is sent without a sync: the test can tell");
    File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync of a directory");
    assert!(two_banks(&cluster) > before, "fsync of a directory did not reach two banks");
    let requests = cluster.status()["requests"]["operations"].clone();
    assert_eq!(requests["fsyncdir"]["requests"], 1, "{requests}");
    assert!(requests["fsync"]["requests"].as_u64() >= Some(kinds.len() as u64), "{requests}");
    create(&cluster, "unsynced", 0);

    // All of it is there after everything was killed, and what was not synced is not.
    Bank::ALL.iter().for_each(|&b| cluster.kill(b));
    cluster.kill_mount();
    Bank::ALL.iter().for_each(|&b| cluster.start_bank(b));
    cluster.mount();
    for (kind, _) in kinds.iter().skip(1) {
        assert_eq!(fs::read(cluster.path(kind)).expect(kind), b"data", "{kind}");
    }
    assert_eq!(fs::read(cluster.path("renamed")).expect("renamed"), b"data");
    assert!(!cluster.path("unsynced").exists(), "nothing is lost here: the test cannot tell");
    fs::set_permissions(cluster.path("renamed"), Permissions::from_mode(0o600)).expect("writable");

    // With the mount option every write is one.
    cluster.unmount();
    cluster.mount_with(&["-o", "sync"]);
    let file = create(&cluster, "option", 0);
    let before = two_banks(&cluster);
    write(&file);
    assert!(two_banks(&cluster) > before, "-o sync: a write did not reach two banks");
}
