//! S0, word for word, and what an application takes for granted.

use cluster::tree::{Manifest, generate, pack, unpack};
use cluster::{Cluster, Random, Setup};
use rustix::fs::{
    Advice, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps,
};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Runs a shell script in a directory, stopping at the first command that fails.
fn sh(dir: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir).env("LC_ALL", "C");
    cluster::process::run(&mut command, Duration::from_secs(60)).expect_ok()
}

#[test]
fn the_words_of_the_original_test_script() {
    let cluster = Cluster::start("words", Setup::default());
    let said = sh(
        &cluster.mountpoint(),
        r#"
        echo hello > f;          [ "$(cat f)" = hello ]
        ls | grep -qx f
        ln -s f s;               [ "$(cat s)" = hello ]; [ "$(readlink s)" = f ]
        unlink f;                ! cat s 2>/dev/null; [ -L s ]   # the symlink dangles
        rm s;                    [ -z "$(ls)" ]
        mkdir d;                 [ -d d ]
        echo one > d/a;          mv d/a d/b; [ "$(cat d/b)" = one ]; [ ! -e d/a ]
        cp d/b d/c;              cmp d/b d/c
        mkdir e; mv d/c e/;      [ "$(cat e/c)" = one ]
        mv d d2;                 [ "$(cat d2/b)" = one ]
        touch -d '2001-02-03 04:05:06.789012345' old; touch new
        [ "$(ls -tr | head -1)" = old ]
        ls -ltr
        chmod 0777 old;          [ "$(stat -c %a old)" = 777 ]
        echo more >> d2/b;       [ "$(wc -l < d2/b)" = 2 ]
        ! rmdir d2 2>/dev/null;  rm -r d2 e old new; [ -z "$(ls -A)" ]
        "#,
    );
    assert!(said.contains("old"), "{said}");
}

#[test]
fn an_unpacked_tree_is_the_tree_that_was_packed() {
    let mut cluster = Cluster::start("tree", Setup::default());
    let outside = cluster.root.join("outside");
    generate(&outside, 600, &mut Random::from_env("tree"));
    let want = Manifest::of(&outside).expect("the generated tree");
    pack(&outside, &cluster.root.join("tree.tar"));
    let into = cluster.path("tree");
    fs::create_dir(&into).expect("mkdir");
    let mut tar = unpack(&cluster.root.join("tree.tar"), &into);
    cluster::process::run(&mut tar, Duration::from_secs(120)).assert_ok();
    want.assert_same(&Manifest::of(&into).expect("the unpacked tree"), "unpacked");

    let exact = Manifest::exact(&into).expect("the unpacked tree");
    cluster.remount();
    let again = Manifest::exact(&into).expect("the tree after a remount");
    exact.assert_same(&again, "inode numbers and ns times after a clean remount");
    let said = cluster.tercet(&["check"]);
    assert!(said.ok(), "{said}");
}

#[test]
fn metadata_is_exact() {
    let mut cluster = Cluster::start("metadata", Setup::default());
    let f = cluster.path("f");
    fs::write(&f, "x").expect("write");
    let at = |sec, nsec| Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps {
        last_access: at(1_000_000_000, 123_456_789),
        last_modification: at(-5, 999_999_999), // before 1970
    };
    rustix::fs::utimensat(CWD, &f, &times, AtFlags::empty()).expect("utimensat");
    std::os::unix::fs::chown(&f, Some(1234), Some(4321)).expect("chown");
    fs::set_permissions(&f, PermissionsExt::from_mode(0o6751)).expect("chmod");
    xattr::set(&f, "user.colour", b"blue").expect("setxattr user");
    xattr::set(&f, "trusted.t", b"\0\xff").expect("setxattr trusted");
    fs::hard_link(&f, cluster.path("g")).expect("link");
    std::os::unix::fs::symlink("no/such", cluster.path("s")).expect("symlink");
    let mknod = |name: &str, kind, dev| {
        rustix::fs::mknodat(CWD, cluster.path(name), kind, Mode::from_raw_mode(0o640), dev)
            .expect(name);
    };
    mknod("fifo", FileType::Fifo, 0);
    mknod("sock", FileType::Socket, 0);
    mknod("chr", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    mknod("whiteout", FileType::CharacterDevice, 0);
    mknod("blk", FileType::BlockDevice, rustix::fs::makedev(7, 0));
    fs::create_dir(cluster.path("d")).expect("mkdir");
    fs::create_dir(cluster.path("d/e")).expect("mkdir");

    let look = |cluster: &Cluster| {
        let m = fs::metadata(cluster.path("g")).expect("stat");
        assert_eq!((m.atime(), m.atime_nsec()), (1_000_000_000, 123_456_789), "atime");
        assert_eq!((m.mtime(), m.mtime_nsec()), (-5, 999_999_999), "mtime");
        assert_eq!((m.uid(), m.gid(), m.nlink(), m.len()), (1234, 4321, 2, 1));
        assert_eq!(m.mode() & 0o7777, 0o6751);
        assert_eq!(
            xattr::get(cluster.path("f"), "user.colour").expect("getxattr").as_deref(),
            Some(&b"blue"[..])
        );
        assert_eq!(
            xattr::get(cluster.path("g"), "trusted.t").expect("getxattr").as_deref(),
            Some(&b"\0\xff"[..])
        );
        assert_eq!(
            fs::metadata(cluster.path("d")).expect("stat").nlink(),
            3,
            "nlink of a directory"
        );
        Manifest::exact(&cluster.mountpoint().join("d")).expect("walk")
    };
    look(&cluster);
    let special = |cluster: &Cluster| {
        ["fifo", "sock", "chr", "whiteout", "blk", "s"].map(|n| {
            let m = fs::symlink_metadata(cluster.path(n)).expect(n);
            (m.ino(), m.mode(), m.rdev(), m.mtime_nsec(), m.ctime_nsec())
        })
    };
    let before = special(&cluster);
    cluster.remount();
    look(&cluster);
    assert_eq!(before, special(&cluster), "special files after a remount");
    assert_eq!(before[2].2, rustix::fs::makedev(1, 3));
}

#[test]
fn errors_are_those_of_linux() {
    let cluster = Cluster::start("errno", Setup::default());
    let p = |n: &str| cluster.path(n);
    let errno = |r: std::io::Result<()>| r.expect_err("must be refused").raw_os_error();
    fs::create_dir(p("d")).expect("mkdir");
    fs::write(p("d/f"), "x").expect("write");
    let is = |e: rustix::io::Errno| Some(e.raw_os_error());
    use rustix::io::Errno as E;
    assert_eq!(errno(fs::remove_dir(p("d"))), is(E::NOTEMPTY));
    assert_eq!(errno(fs::create_dir(p("d"))), is(E::EXIST));
    assert_eq!(errno(fs::remove_file(p("nothing"))), is(E::NOENT));
    assert_eq!(errno(fs::remove_dir(p("d/f"))), is(E::NOTDIR));
    assert_eq!(errno(fs::remove_file(p("d"))), is(E::ISDIR));
    assert_eq!(errno(fs::write(p(&"n".repeat(256)), "")), is(E::NAMETOOLONG));
    fs::write(p(&"n".repeat(255)), "").expect("255 bytes are a name");
    assert_eq!(errno(fs::rename(p("d"), p("d/sub"))), is(E::INVAL));
    assert_eq!(errno(fs::hard_link(p("d"), p("l"))), is(E::PERM));
    assert_eq!(errno(fs::rename(p("d/f"), cluster.root.join("out"))), is(E::XDEV));
    assert_eq!(
        errno(File::options().write(true).create_new(true).open(p("d/f")).map(drop)),
        is(E::EXIST)
    );
    assert_eq!(
        errno(xattr::get(p("d/f"), "user.none").and_then(|v| v.map(drop).ok_or(E::NODATA.into()))),
        is(E::NODATA)
    );
    assert_eq!(
        errno(File::options().write(true).custom_flags(0).open(p("d")).map(drop)),
        is(E::ISDIR)
    );
    // As another user, the kernel refuses by the modes (default_permissions).
    fs::write(p("secret"), "x").expect("write");
    fs::set_permissions(p("secret"), PermissionsExt::from_mode(0o600)).expect("chmod");
    fs::set_permissions(&cluster.root, PermissionsExt::from_mode(0o755)).expect("chmod");
    let cat = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
        .arg(p("secret"))
        .output()
        .expect("setpriv (util-linux)");
    assert!(
        !cat.status.success() && String::from_utf8_lossy(&cat.stderr).contains("Permission denied"),
        "{cat:?}"
    );
}

#[test]
fn renames_with_all_flags() {
    let cluster = Cluster::start("rename", Setup::default());
    let p = |n: &str| cluster.path(n);
    let with = |a: &str, b: &str, flags| rustix::fs::renameat_with(CWD, p(a), CWD, p(b), flags);
    fs::write(p("a"), "A").expect("write");
    fs::write(p("b"), "B").expect("write");
    assert_eq!(with("a", "b", RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
    with("a", "b", RenameFlags::EXCHANGE).expect("exchange");
    assert_eq!(
        (fs::read(p("a")).expect("a"), fs::read(p("b")).expect("b")),
        (b"B".to_vec(), b"A".to_vec())
    );
    let inode = fs::metadata(p("a")).expect("stat").ino();
    let mut old_reader = File::open(p("b")).expect("open");
    fs::rename(p("a"), p("b")).expect("rename over");
    assert_eq!(fs::metadata(p("b")).expect("stat").ino(), inode, "a rename keeps the inode");
    let mut text = String::new();
    old_reader.read_to_string(&mut text).expect("an open file lives on");
    assert_eq!(text, "A", "an open reader keeps the old bytes");
    with("b", "c", RenameFlags::WHITEOUT).expect("whiteout");
    let white = fs::symlink_metadata(p("b")).expect("the whiteout stands at the old name");
    assert_eq!((white.mode() & 0o170_000, white.rdev()), (0o020_000, 0));
    // Directories: over an empty one, not over a full one; nlink of both parents is right.
    for d in ["x", "x/in", "y", "full", "full/z"] {
        fs::create_dir(p(d)).expect("mkdir");
    }
    assert_eq!(fs::rename(p("x/in"), p("full")).expect_err("not empty").raw_os_error(), Some(39));
    fs::rename(p("x/in"), p("y")).expect("over an empty directory");
    assert_eq!(fs::metadata(p("x")).expect("stat").nlink(), 2);
    fs::rename(p("full"), p("x/moved")).expect("into another parent");
    assert_eq!(fs::metadata(p("x")).expect("stat").nlink(), 3);
    assert!(p("x/moved/z").is_dir());
}

#[test]
fn data_is_exact_at_odd_offsets_and_in_holes() {
    let mut cluster = Cluster::start("data", Setup::default());
    let mut random = Random::from_env("data");
    let mut model: Vec<u8> = Vec::new();
    let path = cluster.path("f");
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    for step in 0..400u64 {
        let at = random.below(700_000);
        let at_index = usize::try_from(at).expect("small");
        match random.below(10) {
            0 => {
                file.set_len(at).expect("truncate");
                model.resize(at_index, 0);
            }
            1 => {
                let len = 1 + random.below(200_000);
                rustix::fs::fallocate(
                    &file,
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    at,
                    len,
                )
                .expect("punch");
                let end = model.len().min(at_index + usize::try_from(len).expect("small"));
                if at_index < end {
                    model[at_index..end].fill(0);
                }
            }
            2 => {
                let mut found = vec![0; 70_000];
                let n = file.read_at(&mut found, at).expect("read");
                let want = model.get(at_index..).unwrap_or_default();
                let want = &want[..want.len().min(found.len())];
                assert!(
                    found[..n] == *want,
                    "step {step}: read {n} at {at}, wanted {}",
                    want.len()
                );
            }
            3 => rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("fadvise"),
            4 if step % 3 == 0 => file.sync_data().expect("fdatasync"),
            _ => {
                let len = usize::try_from(1 + random.below(150_000)).expect("small");
                let data = random.bytes(len);
                file.write_all_at(&data, at).expect("write");
                model.resize(model.len().max(at_index + len), 0);
                model[at_index..at_index + len].copy_from_slice(&data);
            }
        }
    }
    assert!(fs::read(&path).expect("read") == model, "the file is not what was written");
    drop(file);
    cluster.remount();
    assert!(
        fs::read(&path).expect("read") == model,
        "the file is not what was written, after a remount"
    );
}

#[test]
fn append_exclusive_unlinked_and_anonymous() {
    let cluster = Cluster::start("open", Setup::default());
    let log = cluster.path("log");
    // Two writers with O_APPEND lose no line.
    let writers: Vec<_> = ["a", "b"]
        .map(|who| {
            let mut file = File::options().create(true).append(true).open(&log).expect("open");
            std::thread::spawn(move || {
                for n in 0..500 {
                    writeln!(file, "{who}{n}").expect("append");
                }
            })
        })
        .into_iter()
        .collect();
    writers.into_iter().for_each(|w| w.join().expect("writer"));
    assert_eq!(fs::read_to_string(&log).expect("read").lines().count(), 1000);
    // O_EXCL has exactly one winner.
    let winners: usize = (0..8)
        .map(|_| {
            let path = cluster.path("once");
            std::thread::spawn(move || usize::from(File::create_new(path).is_ok()))
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|t| t.join().expect("racer"))
        .sum();
    assert_eq!(winners, 1);
    // An unlinked file lives until its last close.
    let mut open = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(cluster.path("u"))
        .expect("open");
    fs::remove_file(cluster.path("u")).expect("unlink");
    open.write_all(b"still here").expect("write");
    open.sync_all().expect("fsync of an unlinked file");
    open.rewind().expect("seek");
    let mut text = String::new();
    open.read_to_string(&mut text).expect("read");
    assert_eq!(text, "still here");
    assert_eq!(open.metadata().expect("fstat").nlink(), 0);
    // Holes are seen.
    let sparse = File::create(cluster.path("sparse")).expect("create");
    sparse.write_all_at(b"end", 10 << 20).expect("write");
    sparse.sync_all().expect("fsync");
    let data = rustix::fs::seek(&sparse, SeekFrom::Data(0)).expect("SEEK_DATA");
    assert!(data > 9 << 20, "data begins at {data}");
    assert_eq!(rustix::fs::seek(&sparse, SeekFrom::Hole(0)).expect("SEEK_HOLE"), 0);
    assert!(sparse.metadata().expect("fstat").blocks() * 512 < 1 << 20, "a hole costs nothing");
    let direct = OFlags::RDONLY | OFlags::DIRECTORY;
    let dir = rustix::fs::open(cluster.mountpoint(), direct, Mode::empty()).expect("open the root");
    rustix::fs::fsync(dir).expect("fsync of a directory");
}
