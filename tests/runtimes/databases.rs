//! S1: databases on the mount. Numbered inserts, each noted outside the mount after its commit; the
//! database, a node, a bank or the mount (with everything on it) is killed at random; every noted
//! number is there afterwards, and the database's own checks are clean.

use crate::REPAIR_MAX;
use crate::lab::{Lab, Weather};
use cluster::{Bank, Random, until};
use std::collections::BTreeSet;
use std::time::Duration;

/// Rounds of kills per database.
const ROUNDS: u64 = 20;

/// A database, in words of the shell. Each runs with `$M`, `$W`, and what `prelude` defines.
struct Database {
    name: &'static str,
    /// Functions and variables.
    prelude: &'static str,
    /// Makes an empty database with `t(n)`, and leaves it running.
    create: &'static str,
    /// Starts the server in the background; returns when it serves.
    start: &'static str,
    /// Inserts `$1`, `$1 + 1`, ... for ever; prints each number after its commit.
    insert: &'static str,
    /// SIGKILL for the server; returns when it is gone.
    kill: &'static str,
    /// Prints all numbers.
    numbers: &'static str,
    /// Its own consistency checks; leaves it running.
    check: &'static str,
    /// Ends it in good order, and what can be checked only then.
    stop: &'static str,
}

const POSTGRES: Database = Database {
    name: "postgres",
    prelude: r#"
        B=$(ls -d /usr/lib/postgresql/*/bin | tail -1); D=$M/postgres
        as() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
        sql() { as psql -h /run/pg -U postgres -d postgres -qAtX -v ON_ERROR_STOP=1 "$@"; }"#,
    create: r#"
        mkdir $D; chown postgres: $D; as $B/initdb -k -D $D -A trust -U postgres >/dev/null; start
        sql -c 'create extension amcheck; create table t(n bigint primary key, pad text)'"#,
    start: r#"
        mkdir -p /run/pg; chown postgres: /run/pg
        setpriv --reuid=postgres --regid=postgres --init-groups $B/postgres -D $D -k /run/pg -c listen_addresses= -c wal_level=replica >>$W/postgres.log 2>&1 </dev/null &
        for _ in $(seq 300); do ! sql -c 'select 1' >/dev/null 2>&1 || return 0; sleep 0.1; done; tail -20 $W/postgres.log >&2; return 1"#,
    insert: r#"seq $1 99999999 | awk '{ print "insert into t values(" $1 ", repeat(md5(\x27" $1 "\x27), 20));\n\\echo " $1 }' | sql"#,
    kill: r#"
        p=$(head -1 $D/postmaster.pid); kill -9 $p; while [ -e /proc/$p ]; do sleep 0.05; done
        while pgrep -x postgres >/dev/null; do sleep 0.05; done   # its children see it and end"#,
    numbers: "sql -c 'select n from t'",
    check: r"as $B/pg_amcheck -h /run/pg -U postgres --heapallindexed --rootdescend --install-missing postgres
        sql -c 'select count(*) from t where pad <> repeat(md5(n::text), 20)' | grep -qx 0",
    stop: "as $B/pg_ctl -D $D -m fast -w stop >/dev/null; as $B/pg_checksums -c -D $D >/dev/null",
};

const MARIADB: Database = Database {
    name: "mariadb",
    prelude: r#"
        D=$M/mariadb
        sql() { mariadb --no-defaults -S /run/my/sock -u root --batch -N --unbuffered "$@"; }"#,
    create: r#"
        mkdir $D; chown nobody $D
        mariadb-install-db --no-defaults --datadir=$D --user=nobody --auth-root-authentication-method=normal >/dev/null 2>&1 ||
            mysql_install_db --no-defaults --datadir=$D --user=nobody --auth-root-authentication-method=normal >/dev/null
        start; sql -e 'create database d; create table d.t(n bigint primary key, pad text) engine=innodb'"#,
    start: r#"
        mkdir -p /run/my; chown nobody /run/my
        mariadbd --no-defaults --user=nobody --datadir=$D --socket=/run/my/sock --pid-file=/run/my/pid --skip-networking \
            --innodb-flush-method=O_DIRECT --log-bin=binlog --sync-binlog=1 >>$W/mariadb.log 2>&1 </dev/null &
        for _ in $(seq 300); do ! sql -e 'select 1' >/dev/null 2>&1 || return 0; sleep 0.1; done; tail -20 $W/mariadb.log >&2; return 1"#,
    insert: r#"seq $1 99999999 | awk '{ print "insert into d.t values(" $1 ", repeat(md5(" $1 "), 20)); select " $1 ";" }' | sql"#,
    kill: r#"p=$(cat /run/my/pid); kill -9 $p; while [ -e /proc/$p ]; do sleep 0.05; done"#,
    numbers: "sql -e 'select n from d.t'",
    check: r#"sql -e 'check table d.t extended' | grep -q 'status.OK$'
        sql -e 'select count(*) from d.t where cast(pad as binary) <> cast(repeat(md5(n), 20) as binary)' | grep -qx 0"#,
    stop: r#"p=$(cat /run/my/pid); sql -e shutdown; while [ -e /proc/$p ]; do sleep 0.05; done"#,
};

const SQLITE: Database = Database {
    name: "sqlite",
    prelude: r#"sql() { stdbuf -oL sqlite3 -bail -cmd '.timeout 20000' $M/sqlite.db "$@"; }"#,
    create: "sql 'pragma journal_mode=wal; create table t(n integer primary key, pad text)' >/dev/null",
    start: "true",
    insert: r#"seq $1 99999999 | awk '{ print "insert into t values(" $1 ", hex(" $1 ") || \x27-pad\x27); select " $1 ";" }' | sql"#,
    kill: "pkill -9 -x sqlite3 || true; while pgrep -x sqlite3 >/dev/null; do sleep 0.05; done",
    numbers: "sql 'select n from t'",
    check: r#"[ "$(sql 'pragma integrity_check; select count(*) from t where pad <> hex(n) || "-pad"')" = "$(printf 'ok\n0')" ]"#,
    stop: "sql 'pragma wal_checkpoint(truncate)' >/dev/null",
};

#[test]
fn postgres_loses_no_commit() {
    killed_at_random(&POSTGRES);
}

#[test]
fn mariadb_loses_no_commit() {
    killed_at_random(&MARIADB);
}

#[test]
fn sqlite_loses_no_commit() {
    killed_at_random(&SQLITE);
}

fn killed_at_random(db: &Database) {
    let mut random = Random::from_env(db.name);
    let mut lab = Lab::open(db.name, Weather::Fair);
    let script = |words: &str| format!("{}\nstart() {{ {}\n}}\n{words}", db.prelude, db.start);
    let sh = |lab: &Lab, words: &str| lab.host().ask(&script(words));
    sh(&lab, db.create);
    let noted = lab.outside("noted");
    let count = || std::fs::read_to_string(&noted).unwrap_or_default().lines().count();
    let mut bank = Bank::A;
    for round in 0..ROUNDS {
        // Each round has numbers of its own; a commit that was not noted may be there as well.
        let first = 1_000_000 * (round + 1);
        let inserting = lab.host().spawn(
            "insert",
            &script(&format!("set -- {first}; ({}) 2>>$W/insert.err >>$W/noted", db.insert)),
        );
        let before = count();
        until(REPAIR_MAX, "inserts are noted", || count() > before + 30);
        std::thread::sleep(Duration::from_millis(random.below(400)));
        let struck =
            ["database", "node", "bank", "mount"][usize::try_from(random.below(4)).unwrap_or(0)];
        match struck {
            "database" => {
                sh(&lab, db.kill);
                sh(&lab, "start");
            }
            "mount" => {
                lab.crash_host();
                sh(&lab, "start");
            }
            _ => {
                if struck == "bank" {
                    lab.cluster.kill(bank);
                } else {
                    lab.cluster.node(bank, usize::try_from(random.below(2)).unwrap_or(0)).kill();
                }
                let before = count();
                until(REPAIR_MAX, "inserts go on", || count() > before + 50);
                lab.cluster.start_bank(bank);
                bank = bank.next();
            }
        }
        sh(
            &lab,
            "pkill -9 -x psql || true; pkill -9 -x mariadb || true; pkill -9 -x sqlite3 || true",
        );
        drop(inserting);
        let found: BTreeSet<String> = sh(&lab, db.numbers).lines().map(str::to_owned).collect();
        let text = std::fs::read_to_string(&noted).expect("what was noted");
        // The last line may be cut: its writer was killed.
        let lost: Vec<&str> = text
            .split_inclusive('\n')
            .filter_map(|l| l.strip_suffix('\n'))
            .filter(|n| {
                !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && !found.contains(*n)
            })
            .collect();
        println!("round {round}: {struck} killed; {} noted, {} there", count(), found.len());
        assert!(lost.is_empty(), "committed, noted and lost: {lost:?}");
        sh(&lab, db.check);
        lab.cluster.await_healthy(REPAIR_MAX);
    }
    sh(&lab, db.stop);
    lab.close(|lab| {
        sh(lab, &format!("start\n{}", db.check));
        sh(lab, db.stop);
    });
}
