//! Many names: a directory too big to be held whole, never a short listing.

use crate::scale;
use cluster::{Cluster, Setup};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

/// The most memory that the mount ever had, as the kernel tells it.
fn memory_of(cluster: &mut Cluster) -> String {
    let pid = cluster.mounted().pid().unwrap_or_default();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("VmHWM unknown");
    format!("memory of the mount: {line}")
}

#[test]
fn a_large_directory_is_listed_whole() {
    let full = scale() > 1;
    let count = if full { 1_000_000 } else { 10_000 };
    let watchdog = Duration::from_secs(if full { 3_000 } else { 240 });
    let mut cluster = Cluster::start("names", Setup { watchdog, ..Setup::default() });
    let dir = cluster.path("many");
    fs::create_dir(&dir).expect("mkdir");
    let began = Instant::now();
    for n in 0..count {
        fs::write(dir.join(format!("f{n:06}")), n.to_string()).expect("write");
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!("{count} small files, {rate:.0} per second; {}", memory_of(&mut cluster));
    let list = || -> BTreeSet<String> {
        let names = fs::read_dir(&dir)
            .expect("opendir")
            .map(|e| e.expect("readdir").file_name().into_string().expect("UTF-8"));
        let all: Vec<_> = names.collect();
        let set: BTreeSet<_> = all.iter().cloned().collect();
        assert_eq!(all.len(), set.len(), "a name was listed twice");
        set
    };
    assert_eq!(list().len() as u64, count);
    // Names that stay are seen exactly once by a listing during which others come and go.
    let mut seen = BTreeSet::new();
    for (n, entry) in fs::read_dir(&dir).expect("opendir").enumerate() {
        seen.insert(entry.expect("readdir").file_name());
        if n % 100 == 0 {
            fs::write(dir.join(format!("new{n}")), "").expect("write");
            fs::remove_file(dir.join(format!("new{n}"))).expect("unlink");
        }
    }
    let stayed = seen.iter().filter(|n| n.to_string_lossy().starts_with('f')).count() as u64;
    assert_eq!(stayed, count, "a listing is short while other names come and go");
    cluster.remount();
    assert_eq!(list().len() as u64, count, "after a remount");
    for n in (0..count).step_by(997) {
        assert_eq!(fs::read_to_string(dir.join(format!("f{n:06}"))).expect("read"), n.to_string());
    }
    println!("listed: {}", memory_of(&mut cluster));
    let began = Instant::now();
    fs::remove_dir_all(&dir).expect("rm -r");
    assert!(!dir.exists());
    println!("removed in {:.0?}", began.elapsed());
    cluster.await_equal(crate::REPAIR_MAX);
}
