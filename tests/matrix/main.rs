//! The fault matrix as a program: `scripts/test matrix [FILTER]`. FILTER is a part of `FAULT/LOAD`, such as
//! `hung`, `/reads` or `power loss/opening`. Results go into `docs/fault-matrix.csv`, and from there into
//! the table in `docs/fault-model.md`; a run of some cells replaces those.

use cluster::Random;
use cluster::matrix::{Cell, Fault, Row, Times, Work, csv_read, csv_text, markdown};
use cluster::programs::repo;
use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What the machine needs beyond the promise of 1 s; the table shows what was measured.
const TIMES: Times =
    Times { stall_max: Duration::from_secs(3), repair_max: Duration::from_secs(60) };
const BEGIN: &str = "<!-- The fault matrix, written by `scripts/test matrix` -->";
const END: &str = "<!-- End of the fault matrix -->";

fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let mut random = Random::from_env("matrix");
    let (mut passed, mut failed) = (0, 0);
    let began = Instant::now();
    for fault in Fault::ALL {
        let chosen = Work::ALL
            .into_iter()
            .filter(|work| format!("{}/{}", fault.name(), work.name()).contains(&filter));
        let cells = run_row(fault, chosen.collect(), &mut random);
        let well = cells.iter().filter(|c| c.passed()).count();
        (passed, failed) = (passed + well, failed + cells.len() - well);
        if !cells.is_empty() {
            record(&cells).expect("the results can be written");
        }
    }
    println!("{} cells in {:.0} s", passed + failed, began.elapsed().as_secs_f64());
    let verdict = if failed == 0 && passed > 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failed} failed;");
    if verdict == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// After a cell that failed the others of its row get a new volume.
fn run_row(fault: Fault, works: Vec<Work>, random: &mut Random) -> Vec<Cell> {
    let mut row: Option<Row> = None;
    let mut cells = Vec::new();
    for work in works {
        let began = Instant::now();
        let taken = row.take();
        let seed = Random::new(random.draw());
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut row = taken.unwrap_or_else(|| Row::begin(fault, TIMES, seed));
            let cell = row.cell(work);
            (row, cell)
        }));
        let cell = match result {
            Ok((mut used, cell)) => {
                if cell.passed() {
                    row = Some(used);
                } else {
                    used.keep();
                }
                cell
            }
            Err(panic) => failure(fault, work, &*panic),
        };
        println!("{:4.1}s {}", began.elapsed().as_secs_f64(), in_words(&cell));
        cells.push(cell);
    }
    if let (Some(row), Some(last)) = (row, cells.last_mut())
        && let Err(panic) = catch_unwind(AssertUnwindSafe(|| row.end()))
    {
        last.result = message(&*panic);
        println!("{}: {}", fault.name(), last.result);
    }
    cells
}

fn in_words(cell: &Cell) -> String {
    let ms = |n: Option<u64>| n.map_or("-".into(), |n| format!("{n} ms"));
    format!(
        "{} / {}: {}; {} operations, {} errors, {} wrong; stall {}, detected {}, whole {}; {} unsynced lost {}",
        cell.fault,
        cell.work,
        cell.result,
        cell.operations,
        cell.errors,
        cell.wrong,
        ms(cell.stall_ms),
        ms(cell.detect_ms),
        ms(cell.redundancy_ms),
        cell.unsynced_lost,
        cell.note
    )
}

fn failure(fault: Fault, work: Work, panic: &(dyn Any + Send)) -> Cell {
    Cell {
        fault: fault.name().into(),
        work: work.name().into(),
        result: message(panic),
        ..Cell::default()
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

/// Into the CSV, and from all of it into the table.
fn record(new: &[Cell]) -> std::io::Result<()> {
    let csv = repo().join("docs/fault-matrix.csv");
    let mut cells = csv_read(&fs::read_to_string(&csv).unwrap_or_default());
    cells.retain(|old| !new.iter().any(|n| (&n.fault, &n.work) == (&old.fault, &old.work)));
    cells.extend_from_slice(new);
    fs::write(&csv, csv_text(&cells))?;
    let page = repo().join("docs/fault-model.md");
    let text = fs::read_to_string(&page)?;
    let (before, rest) = text.split_once(BEGIN).ok_or(std::io::ErrorKind::InvalidData)?;
    let (_, after) = rest.split_once(END).ok_or(std::io::ErrorKind::InvalidData)?;
    fs::write(&page, format!("{before}{BEGIN}\n\n{}\n{END}{after}", markdown(&cells)))
}
