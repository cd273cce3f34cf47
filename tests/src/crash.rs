//! Crash rounds: programs and a journal ([`crate::journal`]) at work on a mount; at a random moment the mount is
//! killed, alone or with a node, a bank or everything, or all disks lose what was not synced. After it is
//! mounted again the journal's directory is as after a prefix of its operations that ends at or behind the
//! last acknowledged one, the program's own checks pass and find what it was promised, `tercet check` is
//! clean, and nothing is left unreclaimed.

use crate::cluster::{Bank, Cluster, Setup};
use crate::disk::NodeDisk;
use crate::host::Host;
use crate::journal::{Journal, Style};
use crate::matrix::await_clean;
use crate::process::until;
use crate::programs::require_programs;
use crate::random::Random;
use std::fs::{self, File};
use std::thread::sleep;
use std::time::Duration;

/// A program, in words of the shell. Each script runs with `$M`, `$W`, and what `prelude` defines. What it
/// was promised it notes in `$W/noted`; the checks find what it had noted before the kill in
/// `$W/promised`. (Afterwards a program may note too much: SQLite takes a directory that it cannot open
/// to sync for one that needs no sync.)
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// (program, package).
    pub needs: &'static [(&'static str, &'static str)],
    /// Functions and variables.
    pub prelude: &'static str,
    /// Once: makes what it works on.
    pub create: &'static str,
    /// In each round, until it is killed; `$1` is the number of the round.
    pub work: &'static str,
    /// After each round.
    pub check: &'static str,
}

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victims {
    /// The mount.
    Mount,
    /// And a node, which stays dead until all has been checked.
    MountAndNode,
    /// And a bank, likewise.
    MountAndBank,
    /// Everything.
    All,
    /// Everything, and disks lose what was not synced.
    Power,
}

const VICTIMS: [Victims; 5] =
    [Victims::Mount, Victims::MountAndNode, Victims::MountAndBank, Victims::All, Victims::Power];

/// How long anything may take once nothing is in its way.
const PATIENCE: Duration = Duration::from_secs(120);
/// Sparse.
const DISK_BYTES: u64 = 4 << 30;

/// Random operations on one file, by fsx; the tree around it comes and goes.
pub const FSX: Program = Program {
    name: "fsx",
    needs: &[],
    prelude: r#"fsx() { "$FSX" "$@"; }"#,
    create: "mkdir $M/fsx
        printf 'flen = 262144\n[opsize]\nmin = 1\nmax = 65536\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\n\
mapwrite = 10\ninvalidate = 1\ntruncate = 3\nfsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 3\nsendfile = 2\n\
posix_fadvise = 1\ncopy_file_range = 3\n' >$W/fsx.toml",
    work: r#"for n in $(seq 1 1000); do
            fsx -f $W/fsx.toml -N 400 -S $((1000 * $1 + n)) -P $W $M/fsx/$1-$((n % 3)) >$W/fsx.out 2>&1 || break; echo $1-$((n % 3)) >>$W/noted
        done; cat $W/fsx.out >>$W/fsx.all"#,
    check: "if grep -is miscompare $W/fsx.all; then exit 1; fi
        find $M/fsx -type f -exec cat {} + >/dev/null; rm -f $M/fsx/*; : >$W/noted",
};

/// Trees of 600 entries, one after the other; the one before goes.
pub const UNTAR: Program = Program {
    name: "untar",
    needs: &[("python3", "python3")],
    prelude: "",
    create: "tar -C $W/tree --format=pax -cf $W/tree.tar .",
    // -P: no stand-ins for links with .. in them.
    work: r#"for k in $(seq 1 1000); do
            mkdir $M/t$1-$k; tar -C $M/t$1-$k -xpPf $W/tree.tar; sync $M/t$1-$k; echo t$1-$k >>$W/noted; rm -rf $M/t$1-$((k - 1))
        done"#,
    check: r#"python3 - $W $M <<'END'
import os, sys, tarfile
outside, mount = sys.argv[1:]
def look(tree, whole):
    """What was unpacked is there in the order of the archive; all but the last complete."""
    missing = unfinished = None
    archive = tarfile.open(outside + '/tree.tar')
    for m in archive:
        path = os.path.join(mount, tree, m.name)
        if not os.path.lexists(path):
            missing = missing or m.name
            continue
        if missing or unfinished:
            sys.exit(f'{tree}: {m.name} is there, but not all of {missing or unfinished}, which came before it')
        if m.isfile() and open(path, 'rb').read() != archive.extractfile(m).read():
            unfinished = m.name
        if m.issym() and os.readlink(path) != m.linkname:
            sys.exit(f'{tree}: {m.name} leads to {os.readlink(path)}')
    if whole and (missing or unfinished):
        sys.exit(f'{tree} was synced, but lacks {missing or unfinished}')
trees = sorted((t for t in os.listdir(mount) if t.startswith('t')), key=lambda t: int(t.split('-')[1]))
# Not what stood there a moment before the kill: the tree before the newest is removed.
promised = open(outside + '/noted').read().split('\n')[-2:-1]
if promised and promised[0] not in trees:
    sys.exit(f'{promised[0]} was synced and is gone; there are {trees}')
for tree in trees[-1:]:
    look(tree, tree in promised)
if promised:
    look(promised[0], True)
END
        rm -rf $M/t*; : >$W/noted"#,
};

/// Commits, each followed by a sync, and now and then a repack.
pub const GIT: Program = Program {
    name: "git",
    needs: &[("git", "git")],
    prelude: "",
    create: "git init -q -b main $M/repo; cd $M/repo; git config gc.auto 0
        git config user.email t@example.org; git config user.name T; git commit -q --allow-empty -m first",
    work: r#"cd $M/repo; for n in $(seq 1 100000); do
            head -c 3000 /dev/urandom >f$((n % 20)); git add -A; git commit -qm "$1 $n"; sync .git; git rev-parse HEAD >>$W/noted
            [ $((n % 15)) != 0 ] || git repack -adq
        done"#,
    check: r#"cd $M/repo; find .git -name '*.lock' -delete; git fsck --full --strict --no-dangling
        git update-ref refs/heads/seen HEAD
        while read -r hash; do git merge-base --is-ancestor $hash HEAD || { echo "commit $hash was synced and is gone"; exit 1; }; done <$W/promised
        git reset -q --hard; git clean -fdq; git status --porcelain | ( ! grep . ); : >$W/noted"#,
};

/// Numbered inserts, with a write-ahead log and with a rollback journal.
pub const SQLITE: Program = Program {
    name: "sqlite",
    needs: &[("sqlite3", "sqlite3")],
    prelude: r#"insert() { seq $2 999999999999 | awk -v j=$1 '{ print "insert into t values(" $1 ", hex(randomblob(150))); select \x27" j $1 "\x27;" }' |
            (printf '.timeout 20000\npragma synchronous=extra;\n'; cat) | stdbuf -oL sqlite3 -bail $M/$1.db >>$W/noted; }"#,
    create: "for j in wal delete; do
            sqlite3 $M/$j.db \"pragma journal_mode=$j; create table t(n integer primary key, pad text)\" >/dev/null; done",
    work: "(insert wal ${1}000000 2>/dev/null) & (insert delete ${1}000000 2>/dev/null) & wait",
    check: r#"for j in wal delete; do
            [ "$(sqlite3 $M/$j.db 'pragma integrity_check')" = ok ] || { echo "$j: integrity"; exit 1; }
            sqlite3 $M/$j.db "select '$j' || n from t" | sort >$W/found
            lost=$({ grep -xE "$j[0-9]+" $W/promised || true; } | sort | comm -23 - $W/found); [ -z "$lost" ] || { echo "committed and lost: $lost"; exit 1; }
        done; : >$W/noted"#,
};

/// The same with the data directory of a server.
pub const POSTGRES: Program = Program {
    name: "postgres",
    needs: &[("psql", "postgresql")],
    prelude: r#"B=$(ls -d /usr/lib/postgresql/*/bin | tail -1); D=$M/postgres
        as() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
        sql() { as psql -h /run/pg -U postgres -d postgres -qAtX -v ON_ERROR_STOP=1 "$@"; }
        start() {
            mkdir -p /run/pg; chown postgres: /run/pg; rm -f $D/postmaster.pid
            setpriv --reuid=postgres --regid=postgres --init-groups $B/postgres -D $D -k /run/pg -c listen_addresses= >>$W/postgres.log 2>&1 </dev/null &
            for _ in $(seq 600); do ! sql -c 'select 1' >/dev/null 2>&1 || return 0; sleep 0.1; done; tail -20 $W/postgres.log >&2; return 1
        }"#,
    create: r#"mkdir $D; chown postgres: $D; as $B/initdb -k -D $D -A trust -U postgres >/dev/null; start
        sql -c 'create table t(n bigint primary key, pad text)'; as $B/pg_ctl -D $D -m fast -w stop >/dev/null"#,
    work: r#"start; for w in 1 2; do
            seq ${1}${w}00000 999999999999 | awk '{ print "insert into t values(" $1 ", repeat(md5(\x27" $1 "\x27), 20));\n\\echo " $1 }' | sql >>$W/noted &
        done; wait"#,
    check: r#"start; sql -c 'select n from t' | sort >$W/found
        lost=$({ grep -xE '[0-9]+' $W/promised || true; } | sort | comm -23 - $W/found); [ -z "$lost" ] || { echo "committed and lost: $lost"; exit 1; }
        sql -c 'select count(*) from t where pad <> repeat(md5(n::text), 20)' | grep -qx 0
        as $B/pg_ctl -D $D -m fast -w stop >/dev/null; as $B/pg_checksums -c -D $D >/dev/null; : >$W/noted"#,
};

/// Runs `rounds` of them; says how many operations of the journal were acknowledged.
///
/// # Panics
/// When anything that was promised is not so; the seed of the round was printed.
pub fn rounds(program: &Program, rounds: u64) -> u64 {
    require_programs(program.needs);
    let mut seeds = Random::from_env(program.name);
    let setup = Setup {
        disk_bytes: Some(DISK_BYTES),
        limits: "holder_watch_ms = 500\n".into(),
        watchdog: Duration::from_secs(120 + 40 * rounds),
        ..Setup::default()
    };
    let mut cluster = Cluster::start(&format!("crash-{}", program.name), setup);
    let outside = cluster.root.join("outside");
    crate::tree::generate(&outside.join("tree"), 600, &mut Random::new(1));
    File::create(outside.join("noted")).expect("create");
    let host = Host::of(&cluster);
    host.sh(&format!("{}\n{}", program.prelude, program.create));
    host.shut_down();
    let dir = cluster.path("journal");
    fs::create_dir(&dir).expect("mkdir");
    File::open(&dir).and_then(|d| d.sync_all()).expect("fsync");
    let mut journal = Journal::new(&dir, Style::Mixed, seeds.draw());
    let mut acknowledged = 0;
    for round in 1..=rounds {
        let mut random = Random::new(seeds.draw());
        let before = journal.acked();
        journal = one(&mut cluster, program, round, journal, &mut random, &mut acknowledged);
        assert!(journal.acked() > before, "nothing was acknowledged");
        if round % 10 == 0 {
            cluster.await_whole(PATIENCE);
        }
    }
    cluster.await_whole(PATIENCE);
    acknowledged
}

fn one(
    cluster: &mut Cluster,
    program: &Program,
    round: u64,
    journal: Journal,
    random: &mut Random,
    acknowledged: &mut u64,
) -> Journal {
    let victims = VICTIMS[usize::try_from(random.below(5)).unwrap_or(0)];
    let bank = Bank::ALL[usize::try_from(random.below(3)).unwrap_or(0)];
    let outside = cluster.root.join("outside");
    let host = Host::of(cluster);
    let script = |words: &str| {
        format!("export FSX={}; set -- {round}\n{}\n{words}", fsx().display(), program.prelude)
    };
    let worker = host.spawn(program.name, &script(program.work));
    let (from, acked) = (journal.issued(), journal.acked());
    let writing = journal.go_on(Duration::from_millis(1));
    until(PATIENCE, "the journal and the program go on", || {
        assert!(!writing.has_ended(), "the journal met an error before anything was killed");
        let noted = fs::read_to_string(outside.join("noted")).unwrap_or_default();
        writing.progress() > 30 && noted.contains('\n')
    });
    sleep(Duration::from_millis(random.below(2000)));
    fs::copy(outside.join("noted"), outside.join("promised")).expect("copy what was promised");
    kill(cluster, victims, bank, random);
    let (mut journal, _) = writing.stop();
    drop(worker);
    host.shut_down();
    let newly = journal.acked() - acked;
    *acknowledged += newly;

    if victims == Victims::Power {
        cluster.nodes().iter().flatten().filter_map(|n| n.disk.as_ref()).for_each(NodeDisk::replug);
    }
    if matches!(victims, Victims::All | Victims::Power) {
        Bank::ALL.into_iter().for_each(|b| cluster.start_bank(b));
    }
    cluster.mount();
    let lost = journal.recover().unwrap_or_else(|e| panic!("round {round}, {victims:?}: {e}"));
    let promised = fs::read_to_string(outside.join("promised")).unwrap_or_default();
    println!(
        "round {round}: {victims:?} {bank:?}; {} operations, {newly} acknowledged, {lost} unsynced lost; {} promised",
        journal.issued() - from,
        promised.lines().count()
    );
    let host = Host::of(cluster);
    let said = host.try_sh(&script(program.check), PATIENCE);
    assert!(said.ok(), "round {round}, {victims:?} {bank:?}, {}: {said}", program.name);
    host.shut_down();
    cluster.start_bank(bank);
    await_clean(cluster, PATIENCE).unwrap_or_else(|e| panic!("round {round}, {victims:?}: {e}"));
    cluster.await_healthy(PATIENCE);
    journal.check().unwrap_or_else(|e| panic!("round {round}, {victims:?}: {e}"));
    journal
}

fn fsx() -> std::path::PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(std::path::PathBuf::from);
    target.unwrap_or_else(|| crate::programs::repo().join("target")).join("suites/bin/fsx")
}

fn kill(cluster: &mut Cluster, victims: Victims, bank: Bank, random: &mut Random) {
    let mount_first = random.below(2) == 0;
    if victims == Victims::Power {
        NodeDisk::fail(cluster.nodes().iter().flatten().filter_map(|n| n.disk.as_ref()));
    }
    if mount_first {
        cluster.kill_mount();
    }
    match victims {
        Victims::Mount => {}
        Victims::MountAndNode => {
            cluster.node(bank, usize::try_from(random.below(2)).unwrap_or(0)).kill();
        }
        Victims::MountAndBank => cluster.kill(bank),
        Victims::All | Victims::Power => (0..3).for_each(|k| {
            cluster.kill(Bank::ALL[(bank as usize + k) % 3]);
        }),
    }
    cluster.kill_mount();
}
