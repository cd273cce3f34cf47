//! Many names: a directory too big to be held whole, never a short listing.

use crate::scale;
use cluster::{Cluster, Setup};
use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

#[test]
fn ten_thousand_small_files_are_listed_whole() {
    let count = 10_000 * scale();
    let mut cluster = Cluster::start("names", Setup::default());
    let dir = cluster.path("many");
    fs::create_dir(&dir).expect("mkdir");
    let began = Instant::now();
    for n in 0..count {
        fs::write(dir.join(format!("f{n:06}")), n.to_string()).expect("write");
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} small files per second created");
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
    fs::remove_dir_all(&dir).expect("rm -r");
    assert!(!dir.exists());
    cluster.await_equal(crate::REPAIR_MAX);
}
