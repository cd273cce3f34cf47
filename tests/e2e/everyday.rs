//! What container hosts do with a filesystem, with the real programs, small enough for every run:
//! overlayfs, SQLite, git, rsync and tar. The large versions are in `tests/runtimes`.

use crate::{REPAIR_MAX, STALL_MAX};
use cluster::load::{CHUNK, Load, check_file, make_file};
use cluster::programs::require_programs;
use cluster::tree::{Manifest, generate};
use cluster::{Bank, Cluster, Host, Random, Setup};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// What rsync and tar carry over only if the filesystem keeps it: devices, pipes, sockets, access lists,
/// file capabilities, attributes, a sparse file, times before 1970 and in nanoseconds.
const ODDITIES: &str = r#"
    mkdir "$1"; cd "$1"
    mkfifo fifo; mknod null c 1 3; mknod whiteout c 0 0; mknod loop b 7 0
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
    echo x >acl; setfacl -m u:1234:r,g:55:rwx,m:rw acl
    mkdir dacl; setfacl -d -m u:1234:rwx,o::- dacl; echo child >dacl/child
    cp /bin/true capable; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 capable
    setfattr -n user.empty acl; setfattr -n user.binary -v 0x00ff0a20 acl; setfattr -n trusted.t -v 1 dacl
    truncate -s 64M sparse; echo middle | dd of=sparse bs=1 seek=32000000 conv=notrunc status=none
    touch -d '1969-12-31 23:59:58.123456789 UTC' old; touch -d '2040-01-02 03:04:05.000000001 UTC' new
    ln -s /no/such/target dangling; touch -h -d '2001-02-03 04:05:06.7' dangling
    cp /bin/true setuid; chown 33:44 setuid; chmod 6755 setuid; ln setuid hard
    mkdir sticky; chmod 1777 sticky; touch "$(printf 'n\nl')" "$(printf '%0255d' 0)"
"#;

/// By the words of chown(2) and write(2) on ext4: they take set-user-id bits and capabilities away at
/// once, and never what is set afterwards.
#[test]
fn set_user_id_and_capabilities_go_and_stay_as_on_linux() {
    require_programs(&[("python3", "python3")]);
    let cluster = Cluster::start("privileges", Setup::default());
    let host = Host::of(&cluster);
    let script = r#"python3 - "$1" <<'END'
import os, sys
os.chdir(sys.argv[1])
cap = bytes.fromhex('0100000200200000000000000000000000000000')
def look(step):
    try: has = len(os.getxattr('f', 'security.capability'))
    except OSError as e: has = os.strerror(e.errno)
    print(step, oct(os.stat('f').st_mode), has)
fd = os.open('f', os.O_CREAT | os.O_RDWR, 0o755)
os.write(fd, b'x' * 300000)
os.setxattr(fd, 'security.capability', cap); os.fchmod(fd, 0o6755)
os.fsync(fd); look('set over dirty pages, then synced')
os.close(fd); look('closed')
os.chown('f', 0, 0); look('given to the owner it has')
os.chmod('f', 0o6755); os.setxattr('f', 'security.capability', cap); look('set again')
os.chown('f', 5, 6); look('given away')
os.setxattr('f', 'security.capability', cap); os.chmod('f', 0o6777); look('set again')
fd = os.open('f', os.O_RDWR); os.write(fd, b'y'); look('written by root')
os.setxattr('f', 'security.capability', cap); os.close(fd); look('set after the write')
pid = os.fork()
if pid == 0:
    fd = os.open('f', os.O_RDWR); os.setresgid(9, 9, 9); os.setresuid(9, 9, 9); os.write(fd, b'z'); os._exit(0)
os.waitpid(pid, 0); look('written by another')
os.chmod('f', 0o4755); os.truncate('f', 3); look('truncated by root')
END
"#;
    let on = |at: &str| host.ask(&format!("mkdir -p {at}; set -- {at}\n{script}"));
    let (ext4, mount) = (on("$W/p"), on("$M/p"));
    assert_eq!(ext4, mount, "outside the mount, and on it");
}

/// However a file was changed, its times after a remount are those that were seen before; and a change
/// of content is seen in them at all.
#[test]
fn times_are_the_same_after_a_remount() {
    require_programs(&[("python3", "python3")]);
    let mut cluster = Cluster::start("times", Setup::default());
    let script = r#"
import mmap, os, time
def opened(n, flags=0): return os.open(n, os.O_CREAT | os.O_RDWR | flags, 0o644)
def saved(n):
    fd = opened(n + '.new'); os.write(fd, b'x' * 5000); os.rename(n + '.new', n); time.sleep(.02); os.close(fd)
def attributed(n):
    fd = opened(n); os.write(fd, b'x' * 5000); os.setxattr(n, 'user.a', b'1'); time.sleep(.02); os.close(fd)
def linked(n):
    fd = opened(n); os.write(fd, b'x' * 50000); os.link(n, n + '.link'); time.sleep(.02); os.close(fd)
def overwritten(n):
    open(n, 'w').write('abc'); open(n, 'w').write('abd')
def truncated_to_the_same(n):
    open(n, 'w').write('abc'); time.sleep(.05); os.truncate(n, 3)
def allocated(n):
    fd = opened(n); os.write(fd, b'x' * 50000); os.posix_fallocate(fd, 0, 100000); time.sleep(.02); os.close(fd)
def direct(n):
    fd = opened(n, os.O_DIRECT); m = mmap.mmap(-1, 8192); os.write(fd, m); os.write(fd, m); time.sleep(.02); os.close(fd)
def copied(n):
    fd = opened(n); os.write(fd, b'x' * 50000); os.copy_file_range(fd, opened(n + '.copy'), 50000, 0, 0); os.close(fd)
def mapped(n):
    fd = opened(n); os.ftruncate(fd, 8192); m = mmap.mmap(fd, 8192); m[5] = 7; m.flush(); time.sleep(.02); m[6] = 7; m.close(); os.close(fd)
for change in saved, attributed, linked, overwritten, truncated_to_the_same, allocated, direct, copied, mapped:
    for k in range(8):
        name = change.__name__ + str(k)
        open(name, 'w').write('begin'); os.utime(name, (1, 1)); change(name)
        assert os.stat(name).st_mtime > 1, name + ' has an old mtime'
"#;
    let mut python = Command::new("python3");
    python.args(["-c", script]).current_dir(cluster.mountpoint());
    cluster::process::run(&mut python, REPAIR_MAX).assert_ok();
    let before = Manifest::exact(&cluster.mountpoint()).expect("walk");
    cluster.remount();
    let after = Manifest::exact(&cluster.mountpoint()).expect("walk");
    before.assert_same(&after, "after a remount");
}

#[test]
fn rsync_and_tar_carry_everything_over() {
    require_programs(&[("rsync", "rsync"), ("setfacl", "acl"), ("python3", "python3")]);
    let mut cluster = Cluster::start("carry", Setup::default());
    let host = Host::of(&cluster);
    let outside = cluster.root.join("outside/tree");
    generate(&outside, 1500, &mut Random::from_env("carry"));
    host.sh(&format!("set -- $W/tree/odd\n{ODDITIES}"));
    let want = Manifest::copied(&outside).expect("the tree outside");
    let saver_dir = cluster.path("saved");
    fs::create_dir(&saver_dir).expect("mkdir");
    let saver = Load::small_files(saver_dir);
    host.sh("rsync -aHAXS --modify-window=-1 --numeric-ids $W/tree/ $M/rsync/");
    want.assert_same(&Manifest::copied(&cluster.path("rsync")).expect("walk"), "by rsync");
    cluster.node(Bank::B, 0).kill();
    host.sh(
        "mkdir $M/tar; tar -C $W/tree --acls --xattrs --xattrs-include='*' --format=pax -Scf - . |
             tar -C $M/tar --acls --xattrs --xattrs-include='*' --numeric-owner -xpf -
         chmod --reference=$W/tree $M/tar; touch -r $W/tree $M/tar",
    );
    let mut by_tar = want.clone();
    by_tar.0.remove(Path::new("odd/socket")).expect("what tar leaves out");
    by_tar
        .assert_same(&Manifest::copied(&cluster.path("tar")).expect("walk"), "by tar, a node dead");
    cluster.node(Bank::B, 0).start();
    saver.stop().assert_unharmed("saver", STALL_MAX);
    let kilobytes = host.ask("du -k $M/rsync/odd/sparse | cut -f1");
    assert!(kilobytes.trim().parse::<u64>().is_ok_and(|k| k < 1024), "sparse: {kilobytes} KiB");
    cluster.await_whole(REPAIR_MAX);
    cluster.kill(Bank::A);
    cluster.wipe(Bank::A);
    cluster.start_bank(Bank::A);
    cluster.await_whole(REPAIR_MAX);
    // What is read now comes from the bank that was rebuilt and the one that had a node dead.
    host.shut_down();
    cluster.unmount();
    cluster.kill(Bank::C);
    cluster.mount();
    for (copy, want) in [("rsync", want), ("tar", by_tar)] {
        let found = Manifest::copied(&cluster.path(copy)).expect("walk");
        want.assert_same(&found, &format!("{copy}, after a bank was rebuilt"));
    }
}

/// The same script over ext4 (or whatever the machine's own filesystem is) and over the mount: what
/// the merged directory shows must be the same, and what lies in the upper one too.
#[test]
fn overlayfs_with_all_its_layers_on_the_mount() {
    require_programs(&[("setfacl", "acl"), ("rsync", "rsync")]);
    let mut cluster = Cluster::start("overlay", Setup::default());
    let host = Host::of(&cluster);
    let script = format!(
        r#"
        cd "$AT"; mkdir lower upper work merged old; set -- $PWD/lower/odd; ( {ODDITIES} )
        mkdir -p lower/d/e lower/opaque/deep lower/gone; echo one >lower/d/f; echo two >lower/d/e/g
        echo x >lower/opaque/deep/x; echo y >lower/gone/y; cp /bin/true lower/program; ln lower/d/f lower/hard
        mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged ||
            {{ echo "this machine cannot mount overlayfs with its layers in $AT" >&2; exit 1; }}
        cd merged
        echo more >>d/f; chown 5:6 hard; chmod 4711 program; setfacl -m u:7:rw d/e/g; setfattr -n user.a -v b odd/acl
        rm program; cp /bin/true program; rm -r gone; rm -r opaque; mkdir opaque; echo z >opaque/z
        mv d/e d/h; rm odd/fifo; mkfifo odd/fifo2; echo tail >>odd/sparse; mv odd/setuid odd/moved
        mkdir new; echo q >new/q; mv new newer; ln newer/q newer/r; truncate -s 5 odd/acl
        setpriv --reuid=1000 --regid=1000 --clear-groups sh -c 'echo mine >odd/sticky/mine; ! echo no >d/no' 2>/dev/null
        find . -exec touch -h -d 2020-01-01 {{}} +
        cd ..; rsync -aHAXS --modify-window=-1 --numeric-ids merged/ old/; umount merged
        mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged"#
    );
    let look = |at: &str| {
        let said = host.try_sh(&format!("export AT={at}; mkdir -p $AT\n{script}"), REPAIR_MAX);
        said.assert_ok();
    };
    look("$W/plain");
    look("$M/layers");
    let plain = cluster.root.join("outside/plain");
    let layers = cluster.path("layers");
    let copied = |root: &Path| Manifest::copied(root).expect("walk");
    copied(&plain.join("old")).assert_same(&copied(&layers.join("old")), "merged, as on ext4");
    // A bank that was dead does not bring back what the whiteouts hide.
    host.sh("grep -q \" $M/layers/merged overlay \" /proc/mounts");
    cluster.kill(Bank::A);
    host.sh("cd $M/layers; rm -r merged/d; echo again >merged/gone; rsync -aHAXS --modify-window=-1 merged/ new/");
    cluster.start_bank(Bank::A);
    cluster.await_whole(REPAIR_MAX);
    let want = copied(&layers.join("new"));
    host.shut_down();
    cluster.unmount();
    cluster.kill(Bank::C);
    cluster.mount();
    let host = Host::of(&cluster);
    host.sh("cd $M/layers; mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
             [ ! -e merged/d ]; [ $(cat merged/gone) = again ]; [ ! -e merged/opaque/deep ]; mkdir after
             rsync -aHAXS --modify-window=-1 merged/ after/; umount merged");
    want.assert_same(&copied(&layers.join("after")), "after a remount on the other two banks");
}

#[test]
fn sqlite_with_four_writers_and_a_killed_mount() {
    require_programs(&[("sqlite3", "sqlite3")]);
    let mut cluster = Cluster::start("sqlite", Setup::default());
    // The first needs shared mmap (the -shm file) and byte-range locks, the second plain files.
    for (round, journal) in ["wal", "delete"].into_iter().enumerate() {
        let host = Host::of(&cluster);
        host.sh(&format!(
            "sqlite3 $M/{journal}.db 'pragma journal_mode={journal};
                 create table t(writer int, n int, pad blob, primary key(writer, n));' >/dev/null"
        ));
        // Each number is printed after its commit, to a file outside. `extra`: with a rollback journal
        // a commit is the unlink of the journal, and only then SQLite syncs the directory.
        let writers = host.spawn(
            &format!("sqlite-{journal}"),
            &format!(
                r#"for w in 1 2 3 4; do
                     for n in $(seq 1 100000); do
                       echo "insert into t values($w, $n, randomblob(300)); select '$w $n';"
                     done | (printf '.timeout 20000\npragma synchronous=extra;\n'; cat) |
                       stdbuf -oL sqlite3 -bail -separator ' ' $M/{journal}.db >>$W/{journal}.acked &
                   done; wait"#
            ),
        );
        let list = cluster.root.join(format!("outside/{journal}.acked"));
        let acked = || fs::read_to_string(&list).unwrap_or_default().lines().count();
        cluster::until(REPAIR_MAX, "200 inserts", || acked() > 200);
        cluster.kill(Bank::ALL[round]);
        let so_far = acked();
        cluster::until(REPAIR_MAX, "200 more with a bank dead", || acked() > so_far + 200);
        // What was printed before the kill counts. After it SQLite may promise too much: it takes a
        // directory that it cannot open to sync (ENOTCONN) for one that needs no sync, and prints. Seen
        // with strace, the window widened (`inject=unlink:delay_exit=100000`): in 5 of 9 killed writers
        // unlink = 0, openat of the directory = ENOTCONN, the number printed, and lost.
        fs::copy(&list, list.with_extension("promised")).expect("copy what was printed");
        cluster.kill_mount();
        drop(writers);
        host.shut_down();
        cluster.start_bank(Bank::ALL[round]);
        cluster.mount();
        let host = Host::of(&cluster);
        let said = host.ask(&format!(
            "sqlite3 $M/{journal}.db 'pragma integrity_check; select count(*) > 400 from t;'
             sqlite3 -separator ' ' $M/{journal}.db 'select writer, n from t' | sort >$W/found
             grep -E '^[1-4] [0-9]+$' $W/{journal}.promised | sort | comm -23 - $W/found"
        ));
        assert_eq!(said, "ok\n1\n", "{journal}: integrity, or commits that were lost");
        cluster.await_whole(REPAIR_MAX);
    }
}

#[test]
fn git_clones_and_checks_its_objects() {
    require_programs(&[("git", "git")]);
    let mut cluster = Cluster::start("git", Setup::default());
    let host = Host::of(&cluster);
    generate(&cluster.root.join("outside/source"), 800, &mut Random::from_env("git"));
    host.sh(r#"git config --global user.email t@example.org; git config --global user.name T
           cd $W/source; git init -q -b main; git add -A; git commit -qm first
           for n in $(seq 1 15); do date +%N >stamp-$n; git add -A; git commit -qm "change $n"; done
           git rev-parse HEAD >$W/head"#);
    host.sh("git clone -q --no-hardlinks $W/source $M/clone; git -C $M/clone fsck --full --strict");
    cluster.kill(Bank::C);
    host.sh(
        r#"cd $M/clone; git checkout -q -b side HEAD~7; for n in 1 2 3; do echo $n >side-$n; git add -A; git commit -qm s; done
           git checkout -q main; git merge -q -m merged side; git gc -q --prune=now; git fsck --full --strict
           git worktree add -q ../tree side; git push -q $W/source main:from-mount; git -C $W/source fsck --full"#,
    );
    cluster.start_bank(Bank::C);
    cluster.await_whole(REPAIR_MAX);
    host.shut_down();
    cluster.remount();
    let host = Host::of(&cluster);
    let said = host.ask(
        "cd $M/clone; git fsck --full --strict; git status --porcelain; git -C ../tree status --porcelain
         git merge-base --is-ancestor $(cat $W/head) HEAD
         [ $(git rev-parse HEAD) = $(git -C $W/source rev-parse from-mount) ]",
    );
    assert_eq!(said, "", "a clean working tree");
}

/// What a stream has read lies in the kernel's pages, and not a second time in the mount; whoever may write,
/// or goes past those pages, finds it in the mount. Told apart by what can still be read without two banks
/// when the kernel has dropped its pages.
#[test]
fn what_a_stream_has_read_is_held_once() {
    let mut cluster = Cluster::start("once", Setup { shards: 1, ..Setup::no_refresh() });
    let path = cluster.path("f");
    let chunks = (8 << 20) / CHUNK as u64;
    make_file(&path, 5, chunks);
    let dd = |flags: &str| {
        let done = Command::new("dd")
            .args([&format!("if={}", path.display()), "of=/dev/null", "bs=1M", flags])
            .output();
        done.expect("dd").status.success()
    };
    let both = || {
        let file = File::options().read(true).write(true).open(&path).expect("open");
        (0..8).all(|n| file.read_exact_at(&mut vec![0; 1 << 20], n << 20).is_ok())
    };
    let readers: [(&str, &dyn Fn() -> bool, bool); 3] = [
        ("through the pages", &|| dd("iflag=fullblock"), false),
        ("past the pages", &|| dd("iflag=direct"), true),
        ("and may write", &both, true),
    ];
    for (who, read, again) in readers {
        cluster.remount();
        cluster.await_healthy(REPAIR_MAX);
        assert!(read(), "reads {who}");
        let dropped = Command::new("dd")
            .args([&format!("if={}", path.display()), "iflag=nocache", "count=0"])
            .output();
        assert!(dropped.expect("dd").status.success());
        cluster.kill(Bank::B);
        cluster.kill(Bank::C);
        assert_eq!(read(), again, "reads {who}, without two banks");
        cluster.start_bank(Bank::B);
        cluster.start_bank(Bank::C);
        cluster.await_healthy(REPAIR_MAX);
        assert!(read(), "reads {who}, with all banks again");
    }
    cluster.remount();
    check_file(&path, 5, chunks);
}
