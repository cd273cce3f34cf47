//! A segment that was compacted away gives its space back step by step; who still reads in it, reads
//! all of what he asked for.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(unreachable_pub)]
mod support;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use storenode::disk::{Disk, DiskFile, DiskSpace, MemoryDisk};
use storenode::service::Service;
use storenode::wire::*;
use support::*;

#[derive(Default)]
struct Gate {
    /// The next read of a value's length waits at both barriers.
    armed: AtomicBool,
    cuts: AtomicUsize,
    arrived: Option<Barrier>,
    go_on: Option<Barrier>,
}

#[derive(Clone)]
struct GateDisk(MemoryDisk, Arc<Gate>);
struct GateFile(Arc<dyn DiskFile>, Arc<Gate>);

const VALUE: usize = 64 << 10;

impl GateDisk {
    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(GateFile(file, Arc::clone(&self.1)))
    }
}

impl Disk for GateDisk {
    fn lock(&self) -> io::Result<()> {
        self.0.lock()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(name).map(|f| self.wrap(f))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.create(name).map(|f| self.wrap(f))
    }
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.0.replace(name, content)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn space(&self) -> io::Result<DiskSpace> {
        self.0.space()
    }
}

impl DiskFile for GateFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        if into.len() == VALUE && self.1.armed.swap(false, SeqCst) {
            self.1.arrived.as_ref().unwrap().wait();
            self.1.go_on.as_ref().unwrap().wait();
        }
        self.0.read_at(into, offset)
    }
    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.0.write_at(pieces, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.1.cuts.fetch_add(1, SeqCst);
        self.0.truncate(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

/// A store whose first segment of 16 MiB is to be compacted: all but the last keys were written again.
fn aged() -> (Node, Arc<Gate>, Version) {
    let gate = Arc::new(Gate {
        arrived: Some(Barrier::new(2)),
        go_on: Some(Barrier::new(2)),
        ..Gate::default()
    });
    let disk = MemoryDisk::new();
    let config = config(16 << 20);
    let on = Arc::new(GateDisk(disk.clone(), Arc::clone(&gate)));
    let service = Service::open(on, config).unwrap();
    let mut n = Node { disk, service, epoch: 0, segment_bytes: 16 << 20 };
    n.assign(Role::Voter);
    n.take(1);
    let mut seq = 0;
    for (round, keys) in [(1, 0..240u64), (2, 0..236), (3, 0..236)] {
        for key in keys {
            seq += 1;
            n.write(seq, &vec![put(format!("k{key:03}").as_bytes(), &vec![round; VALUE])]).unwrap();
        }
    }
    n.commit(v(1, seq));
    n.tick();
    (n, gate, v(1, seq))
}

#[test]
fn space_of_a_removed_segment_is_given_back_in_steps() {
    let (n, gate, _) = aged();
    let gone = || n.service.metrics().segments_compacted;
    let mut calls = 0;
    while gone() == 0 {
        n.service.maintain();
        calls += 1;
        assert!(calls < 100, "never compacted");
    }
    for step in 1..=16 {
        let before = gate.cuts.load(SeqCst);
        assert!(n.service.maintain());
        let cuts = gate.cuts.load(SeqCst) - before;
        // 16 MiB at 1 MiB each; the last of it goes with the file.
        assert_eq!(cuts, usize::from(step < 16), "step {step}");
        assert_eq!(gone(), 1, "the next one waits");
    }
}

#[test]
fn who_reads_in_a_segment_while_it_is_removed_reads_all_of_it() {
    let (n, gate, top) = aged();
    std::thread::scope(|s| {
        gate.armed.store(true, SeqCst);
        // In the first segment, at its end.
        let reader = s.spawn(|| n.read(b"k239", top).unwrap());
        gate.arrived.as_ref().unwrap().wait();
        n.maintain();
        assert!(n.service.metrics().segments_compacted > 0);
        gate.go_on.as_ref().unwrap().wait();
        let (found, value) = reader.join().unwrap();
        assert!(matches!(found, Found::Record { .. }), "{found:?}");
        assert!(value.unwrap() == vec![1u8; VALUE]);
    });
}
