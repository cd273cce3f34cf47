//! Holes cost nothing, a full volume says ENOSPC and gives space back.

use crate::REPAIR_MAX;
use cluster::load::{CHUNK, check_file, make_file};
use cluster::random::block;
use cluster::{Cluster, Setup, until};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

/// Bytes that the files below `dir` take on disk.
fn on_disk(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries
        .iter()
        .filter_map(|e| e.path().symlink_metadata().ok().map(|m| (e.path(), m)))
        .map(|(p, m)| if m.is_dir() { on_disk(&p) } else { m.blocks() * 512 })
        .sum()
}

#[test]
fn a_file_of_4_gib_that_is_mostly_hole() {
    let mut cluster = Cluster::start("sparse", Setup::default());
    let before = on_disk(&cluster.root.join("nodes"));
    let path = cluster.path("disk.img");
    let file = File::create(&path).expect("create");
    file.set_len(4 << 30).expect("truncate to 4 GiB");
    for n in 0..16u64 {
        file.write_all_at(&block(4, n, CHUNK), n * (256 << 20) + 12_345).expect("write");
    }
    // Dense zeros are holes too.
    file.write_all_at(&vec![0; 8 << 20], 100 << 20).expect("write zeros");
    file.sync_all().expect("fsync");
    assert_eq!(file.metadata().expect("fstat").len(), 4 << 30);
    let used = file.metadata().expect("fstat").blocks() * 512;
    assert!(used < 8 << 20, "the file claims {used} bytes");
    let cost = on_disk(&cluster.root.join("nodes")).saturating_sub(before);
    assert!(cost < 64 << 20, "1 MiB of data and holes cost {cost} bytes on the banks");
    drop(file);
    cluster.remount();
    let file = File::open(&path).expect("open");
    let mut found = vec![1; CHUNK];
    for n in 0..16u64 {
        file.read_exact_at(&mut found, n * (256 << 20) + 12_345).expect("read");
        assert!(found == block(4, n, CHUNK), "piece {n}");
        file.read_exact_at(&mut found, n * (256 << 20) + (128 << 20)).expect("read a hole");
        assert!(found.iter().all(|b| *b == 0), "hole {n}");
    }
    fs::remove_file(&path).expect("unlink of 4 GiB");
    cluster.await_equal(REPAIR_MAX);
}

#[test]
fn a_full_volume_says_enospc_goes_on_and_gives_space_back() {
    let setup = Setup { shards: 1, capacity_bytes: Some(96 << 20), ..Setup::default() };
    let mut cluster = Cluster::start("full", setup);
    make_file(&cluster.path("kept"), 1, 16);
    let df = |cluster: &Cluster| {
        let s = rustix::fs::statvfs(cluster.mountpoint()).expect("statfs");
        (s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize)
    };
    let (total, free) = df(&cluster);
    println!("df: {} MiB, {} MiB free", total >> 20, free >> 20);
    assert!(total <= 96 << 20 && free <= total, "df tells the truth: {total} {free}");
    let file = File::create(cluster.path("filler")).expect("create");
    let mut refused = None;
    for n in 0..4096 {
        let result = file.write_all_at(&block(2, n, CHUNK), n * CHUNK as u64);
        let result = result.and_then(|()| if n % 16 == 15 { file.sync_data() } else { Ok(()) });
        if let Err(e) = result {
            refused = Some((n, e));
            break;
        }
    }
    let (chunks, error) = refused.expect("256 MiB do not fit into 96 MiB");
    println!("refused after {} MiB: {error}", (chunks * CHUNK as u64) >> 20);
    assert_eq!(error.raw_os_error(), Some(28), "ENOSPC, not {error}");
    assert!(chunks > 16 * 16, "refused after {chunks} chunks only");
    // What is there is there; deleting works on a full volume and gives the space back.
    check_file(&cluster.path("kept"), 1, 16);
    drop(file);
    fs::remove_file(cluster.path("filler")).expect("unlink on a full volume");
    until(Duration::from_secs(60), "space returns", || df(&cluster).1 > free / 2);
    until(Duration::from_secs(60), "writing works again", || {
        let again = cluster.path("again");
        File::create(&again)
            .and_then(|f| {
                (0..64)
                    .try_for_each(|n| f.write_all_at(&block(3, n, CHUNK), n * CHUNK as u64))
                    .and_then(|()| f.sync_all())
            })
            .is_ok()
    });
    cluster.remount();
    check_file(&cluster.path("kept"), 1, 16);
    check_file(&cluster.path("again"), 3, 64);
    cluster.await_equal(REPAIR_MAX);
}

/// A reservation that does not fit must not take what there is: ext4 keeps what it could reserve until
/// it found no more.
#[test]
fn a_disk_smaller_than_a_segment_is_used() {
    let setup = Setup { shards: 1, disk_bytes: Some(66 << 20), ..Setup::default() };
    let mut cluster = Cluster::start("small-disk", setup);
    make_file(&cluster.path("f"), 1, 256);
    for node in cluster.nodes().iter().flatten() {
        let free = rustix::fs::statvfs(&node.dir).expect("statfs");
        let free = free.f_bavail * free.f_frsize;
        assert!(free > 24 << 20, "{node}: {free} bytes free beside 16 MiB");
    }
    cluster.remount();
    check_file(&cluster.path("f"), 1, 256);
}
