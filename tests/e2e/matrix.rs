//! A few cells of the fault matrix, and a few crash rounds of each program. All of them: `scripts/test matrix`
//! and `scripts/test crash`.

use crate::{REPAIR_MAX, STALL_MAX, scale};
use cluster::Random;
use cluster::crash::{FSX, GIT, Program, SQLITE, UNTAR, rounds};
use cluster::disk::NodeDisk;
use cluster::matrix::{Fault, Row, Times, Work};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Rounds of each program in ordinary runs.
const ROUNDS: u64 = 3;

fn cells(fault: Fault, works: &[Work]) {
    let times = Times { stall_max: STALL_MAX, repair_max: REPAIR_MAX };
    let mut row = Row::begin(fault, times, Random::from_env(fault.name()));
    for work in works {
        let cell = row.cell(*work);
        println!("{cell:?}");
        assert!(cell.passed(), "{} / {}: {}", cell.fault, cell.work, cell.result);
    }
    row.end();
}

#[test]
fn a_hung_bank_under_reads_and_at_opening() {
    cells(Fault::Hung, &[Work::Reads, Work::Opening]);
}

#[test]
fn a_partition_in_a_rename_storm() {
    cells(Fault::Partition, &[Work::RenameStorm]);
}

#[test]
fn a_bank_is_emptied_again_while_it_is_repaired() {
    cells(Fault::Empty, &[Work::Repair]);
}

#[test]
fn flipped_bits_in_logs_under_small_files() {
    cells(Fault::FlippedLog, &[Work::SmallFiles]);
}

#[test]
fn failing_disks_under_synced_overwrites() {
    cells(Fault::DiskErrors, &[Work::SyncedOverwrites]);
}

#[test]
fn full_disks_under_a_sequential_write() {
    cells(Fault::DiskFull, &[Work::SequentialWrite]);
}

#[test]
fn a_power_loss_under_small_files_and_at_opening() {
    cells(Fault::PowerLoss, &[Work::SmallFiles, Work::Opening]);
}

#[test]
fn repeated_messages_in_a_rename_storm() {
    cells(Fault::Repeated, &[Work::RenameStorm]);
}

/// What the tests with failing disks and with power loss believe of them.
#[test]
fn a_disk_that_failed_has_what_was_synced() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = NodeDisk::make(&dir.path().join("d"), 32 << 20);
    let name = dir.path().join("d/f");
    let file = File::create(&name).expect("create");
    file.write_all_at(b"synced", 0).and_then(|()| file.sync_all()).expect("write");
    file.write_all_at(b"SYNCED and more", 0).expect("write");
    NodeDisk::fail([&disk]);
    assert_eq!(file.sync_all().expect_err("EIO").raw_os_error(), Some(5));
    assert!(file.write_all_at(b"x", 0).is_err());
    drop(file);
    disk.replug();
    assert_eq!(fs::read(&name).expect("read"), b"synced");
    disk.fill();
    let full = fs::write(dir.path().join("d/g"), [1; 10_000]).expect_err("ENOSPC");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    disk.unfill();
    fs::write(dir.path().join("d/g"), [1; 10_000]).expect("there is space again");
}

fn a_few_rounds(program: &Program) {
    let acknowledged = rounds(program, ROUNDS * scale());
    println!("{}: {acknowledged} acknowledged operations, none lost", program.name);
}

#[test]
fn crash_rounds_with_fsx() {
    a_few_rounds(&FSX);
}

#[test]
fn crash_rounds_with_untar() {
    a_few_rounds(&UNTAR);
}

#[test]
fn crash_rounds_with_git() {
    a_few_rounds(&GIT);
}

#[test]
fn crash_rounds_with_sqlite() {
    a_few_rounds(&SQLITE);
}
