//! S2: a machine's root filesystem of 40,000 files, by rsync and by tar: nothing about it differs from
//! the original on the machine's own filesystem, also when a node dies midway and after a wiped bank
//! was rebuilt. And trees that are worked in: git, cargo.

use crate::REPAIR_MAX;
use crate::lab::{Lab, Weather};
use crate::roots::debian;
use cluster::programs::repo;
use cluster::tree::Manifest;
use cluster::{Bank, until};
use std::path::Path;
use std::time::{Duration, Instant};

/// A hosting machine: a Debian root, with three containers' roots in it, and what only a filesystem with
/// everything keeps.
const MACHINE: &str = r#"
for root in . var/lib/lxc/one/rootfs var/lib/lxc/two/rootfs var/lib/lxc/three/rootfs; do
    mkdir -p $W/machine/$root; tar -C $W/machine/$root --numeric-owner --xattrs --xattrs-include='*' --acls -xpf $TAR
done
mkdir $W/machine/odd; cd $W/machine/odd
mkfifo fifo; mknod null c 1 3; mknod whiteout c 0 0; mknod loop b 7 0
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
echo x >acl; setfacl -m u:1234:r,g:55:rwx,m:rw acl; mkdir dacl; setfacl -d -m u:1234:rwx,o::- dacl; echo child >dacl/child
cp /bin/true capable; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 capable
setfattr -n user.binary -v 0x00ff0a20 acl; setfattr -n user.empty acl; setfattr -n trusted.t -v 1 dacl
truncate -s 1G sparse; echo middle | dd of=sparse bs=1 seek=700000000 conv=notrunc status=none
touch -d '1969-12-31 23:59:58.123456789 UTC' old; touch -d '2040-01-02 03:04:05.000000001 UTC' new
ln -s /no/such dangling; touch -h -d '2001-02-03 04:05:06.7' dangling
cp /bin/true setuid; chown 33:44 setuid; chmod 6755 setuid; ln setuid hard; mkdir sticky; chmod 1777 sticky
touch "$(printf 'n\nl')" "$(printf '%0255d' 0)" "$(printf '\377\376')"; mkdir -p $(seq -s / 1 60)
"#;

#[test]
fn forty_thousand_files_by_rsync() {
    forty_thousand_files(
        "rsync",
        "rsync -aHAXS --modify-window=-1 --numeric-ids $W/machine/ $M/copy/",
    );
}

#[test]
fn forty_thousand_files_by_tar() {
    forty_thousand_files(
        "tar",
        "mkdir $M/copy; tar -C $W/machine --acls --xattrs --xattrs-include='*' --format=pax -Scf - . |
             tar -C $M/copy --acls --xattrs --xattrs-include='*' --numeric-owner -xpf -",
    );
}

fn forty_thousand_files(name: &str, copy: &str) {
    let root = debian();
    let mut lab = Lab::open(name, Weather::Fair);
    lab.sh(&format!("TAR={}\n{MACHINE}", root.display()));
    let machine = lab.outside("machine");
    let mut want = Manifest::copied(&machine).expect("the machine");
    if name == "tar" {
        want.0.remove(Path::new("odd/socket")).expect("what tar leaves out");
    }
    assert!(want.0.len() > 40_000, "{} entries", want.0.len());
    let began = Instant::now();
    let copying = lab.host().spawn("copy", &format!("{copy}\ntouch $W/copied"));
    let copied = lab.outside("copied");
    until(REPAIR_MAX, "a part is copied", || {
        lab.cluster.path("copy/usr").exists() || copied.exists()
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(!copied.exists(), "a node should die in the middle, and it is over");
    lab.cluster.node(Bank::B, 1).kill();
    until(Duration::from_secs(400), "the copy ends (log: run/copy.log)", || copied.exists());
    println!("{} entries by {name} in {:?}, a node dead", want.0.len(), began.elapsed());
    drop(copying);
    let same = |lab: &Lab, when: &str| {
        let began = Instant::now();
        want.assert_same(&Manifest::copied(&lab.cluster.path("copy")).expect("walk"), when);
        println!("listed, hashed and compared in {:?}: {when}", began.elapsed());
    };
    same(&lab, "with a node dead");
    lab.cluster.node(Bank::B, 1).start();
    lab.cluster.await_healthy(REPAIR_MAX);
    let ids = Manifest::exact(&lab.cluster.path("copy/odd")).expect("walk");
    lab.cluster.kill(Bank::C);
    lab.cluster.wipe(Bank::C);
    lab.cluster.start_bank(Bank::C);
    same(&lab, "while a wiped bank is rebuilt");
    lab.cluster.await_healthy(REPAIR_MAX);
    let kilobytes = lab.ask("du -k $M/copy/odd/sparse | cut -f1");
    assert!(kilobytes.trim().parse::<u64>().is_ok_and(|k| k < 1024), "sparse: {kilobytes} KiB");
    lab.close(|lab| {
        // Bank A is dead: this is what the bank with the dead node and the rebuilt one hold.
        same(lab, "from the bank that was rebuilt and the one that had a node dead");
        let again = Manifest::exact(&lab.cluster.path("copy/odd")).expect("walk");
        ids.assert_same(&again, "inode numbers and ctimes");
    });
}

/// A repository of a whole Debian root and thirty changes to it.
#[test]
fn git_of_a_large_repository() {
    let root = debian();
    let mut lab = Lab::open("git", Weather::BanksDie);
    lab.sh(&format!(
        r#"git config --global user.email t@example.org; git config --global user.name T; git config --global gc.auto 0
           mkdir $W/source; cd $W/source; tar -xf {} --no-same-owner ./usr/share ./usr/lib ./etc ./var
           git init -q -b main; git add -A; git commit -qm first
           for n in $(seq 30); do echo $n | tee usr/share/common-licenses/GPL-3 etc/stamp-$n >/dev/null; git add -A; git commit -qm "$n"; done"#,
        root.display()
    ));
    lab.turn();
    lab.sh("cd /; git clone -q --no-hardlinks $W/source $M/clone; git -C $M/clone fsck --full --strict");
    lab.turn();
    lab.sh(
        r#"cd $M/clone; git checkout -q -b side HEAD~20; for n in 1 2 3 4 5; do echo $n >side-$n; git add -A; git commit -qm "side $n"; done
           git checkout -q main; git merge -q -m merged side; git repack -q -a -d -f --window=5 --threads=2; git prune
           git worktree add -q ../tree side; git push -q $W/source main:from-mount; git -C $W/source fsck --full"#,
    );
    lab.turn();
    let look = "cd $M/clone; git fsck --full --strict; git status --porcelain; git -C ../tree status --porcelain
         [ $(git rev-parse HEAD^{tree}) = $(git -C $W/source rev-parse from-mount^{tree}) ]";
    assert_eq!(lab.ask(look), "", "a clean working tree");
    lab.close(|lab| assert_eq!(lab.ask(look), "", "a clean working tree"));
}

/// The storage node of this very repository, sources and target directory on the mount: incremental
/// state, hard links, mmap of libraries, many small files, file locks, and times that decide what is
/// built again.
#[test]
fn cargo_builds_a_crate() {
    let mut lab = Lab::open("cargo", Weather::BanksAreRefilled);
    let home = std::env::var("CARGO_HOME")
        .unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_default()));
    let rustup = std::env::var("RUSTUP_HOME")
        .unwrap_or_else(|_| format!("{}/.rustup", std::env::var("HOME").unwrap_or_default()));
    let build = format!(
        "export CARGO_HOME={home} RUSTUP_HOME={rustup} CARGO_TARGET_DIR=$M/target; cd $M/source
         cargo build --offline --locked -p tercet-storenode --lib --no-default-features 2>&1"
    );
    lab.sh(&format!(
        "mkdir $M/source; cd {}; tar -cf - --exclude=./target --exclude=./.git . | tar -C $M/source -xf -",
        repo().display()
    ));
    lab.turn();
    assert!(lab.ask(&build).contains("Finished"));
    lab.turn();
    let again = lab.ask(&build);
    assert!(!again.contains("Compiling"), "nothing changed, and it builds again: {again}");
    lab.sh("echo '// changed' >>$M/source/storenode/src/frame.rs");
    let again = lab.ask(&build);
    let built = again.lines().filter(|l| l.contains("Compiling")).count();
    assert_eq!(built, 1, "one source changed: {again}");
    lab.remount();
    let again = lab.ask(&build);
    assert!(!again.contains("Compiling"), "a remount, and it builds again: {again}");
    lab.close(|_| {});
}
