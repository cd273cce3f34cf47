//! Results: a CSV with every figure, and a table for people.

use super::{Fault, Work};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One cell, measured.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    /// [`Fault::name`].
    pub fault: String,
    /// [`Work::name`].
    pub work: String,
    /// `passed` or what went wrong.
    pub result: String,
    /// Errors that applications saw.
    pub errors: u64,
    /// Wrong bytes and other differences from the journal.
    pub wrong: u64,
    /// Longest operation while the fault struck and was repaired, ms; where the mount died, how long it
    /// took to mount again.
    pub stall_ms: Option<u64>,
    /// From the strike until `status` said that something is not up to date, ms.
    pub detect_ms: Option<u64>,
    /// From the end of the fault until everything was up to date, ms.
    pub redundancy_ms: Option<u64>,
    /// Operations of the load.
    pub operations: u64,
    /// Operations that were not acknowledged, and gone after a crash.
    pub unsynced_lost: u64,
    /// What else is to be said.
    pub note: String,
}

const HEAD: &str =
    "fault,load,result,errors,wrong,stall_ms,detect_ms,redundancy_ms,operations,unsynced_lost,note";

impl Cell {
    /// Nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.result == "passed"
    }

    fn csv(&self) -> String {
        let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
        let text = |s: &str| s.replace(['\n', ',', '"'], " ");
        [
            text(&self.fault),
            text(&self.work),
            text(&self.result).chars().take(120).collect(),
            self.errors.to_string(),
            self.wrong.to_string(),
            number(self.stall_ms),
            number(self.detect_ms),
            number(self.redundancy_ms),
            self.operations.to_string(),
            self.unsynced_lost.to_string(),
            text(&self.note),
        ]
        .join(",")
    }

    fn from_csv(line: &str) -> Option<Self> {
        let mut fields = line.split(',').map(str::to_owned);
        let mut text = || fields.next();
        let mut cell = Self { fault: text()?, work: text()?, result: text()?, ..Self::default() };
        let mut number = || text().map(|t| t.parse().ok());
        cell.errors = number()??;
        cell.wrong = number()??;
        cell.stall_ms = number()?;
        cell.detect_ms = number()?;
        cell.redundancy_ms = number()?;
        cell.operations = number()??;
        cell.unsynced_lost = number()??;
        cell.note = fields.next().unwrap_or_default();
        Some(cell)
    }

    /// `stall · detected · whole`, in seconds.
    fn short(&self) -> String {
        let seconds =
            |n: Option<u64>| n.map_or("–".into(), |n| format!("{:.2}", n as f64 / 1000.0));
        let failed = if self.passed() { "" } else { "**FAILED** " };
        let [a, b, c] = [self.stall_ms, self.detect_ms, self.redundancy_ms].map(seconds);
        format!("{failed}{a} · {b} · {c}")
    }
}

/// All cells as CSV, in the order of the two lists.
#[must_use]
pub fn csv_text(cells: &[Cell]) -> String {
    let by_name: BTreeMap<(&str, &str), &Cell> =
        cells.iter().map(|c| ((c.fault.as_str(), c.work.as_str()), c)).collect();
    let mut out = format!("{HEAD}\n");
    for fault in Fault::ALL {
        for work in Work::ALL {
            if let Some(cell) = by_name.get(&(fault.name(), work.name())) {
                let _ = writeln!(out, "{}", cell.csv());
            }
        }
    }
    out
}

/// Reads what [`csv_text`] wrote.
#[must_use]
pub fn csv_read(text: &str) -> Vec<Cell> {
    text.lines().skip(1).filter_map(Cell::from_csv).collect()
}

/// The table, and what all cells have in common above it.
#[must_use]
pub fn markdown(cells: &[Cell]) -> String {
    let failed = cells.iter().filter(|c| !c.passed()).count();
    let sum = |f: fn(&Cell) -> u64| cells.iter().map(f).sum::<u64>();
    let longest =
        cells.iter().filter(|c| !c.note.contains("mount again")).filter_map(|c| c.stall_ms).max();
    let mut out = format!(
        "{} cells of {}, {failed} failed. Over all of them: {} operations, {} errors seen by applications, {} wrong \
         bytes, names or lost acknowledged syncs; longest stall {:.2} s.\n\n",
        cells.len(),
        Fault::ALL.len() * Work::ALL.len(),
        sum(|c| c.operations),
        sum(|c| c.errors),
        sum(|c| c.wrong),
        longest.unwrap_or(0) as f64 / 1000.0,
    );
    let heads: Vec<&str> = Work::ALL.iter().map(|w| w.name()).collect();
    let _ = writeln!(out, "| fault | {} |", heads.join(" | "));
    let _ = writeln!(out, "|---|{}", "---|".repeat(heads.len()));
    for fault in Fault::ALL {
        let row = Work::ALL.map(|work| {
            let found = cells.iter().find(|c| c.fault == fault.name() && c.work == work.name());
            found.map_or("not run".into(), Cell::short)
        });
        let _ = writeln!(out, "| {} | {} |", fault.name(), row.join(" | "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_survive_their_file_and_gaps_and_failures_show() {
        let cell = Cell {
            fault: Fault::Dead.name().into(),
            work: Work::Reads.name().into(),
            result: "passed".into(),
            stall_ms: Some(12),
            redundancy_ms: Some(900),
            operations: 7,
            ..Cell::default()
        };
        let failed = Cell {
            work: Work::Idle.name().into(),
            result: "no, \"this\"\nwent wrong".into(),
            wrong: 1,
            ..cell.clone()
        };
        let text = csv_text(&[cell.clone(), failed]);
        let read = csv_read(&text);
        assert_eq!(read.len(), 2);
        assert_eq!(read[1], cell);
        assert_eq!(csv_text(&read), text);
        let table = markdown(&read);
        assert!(table.contains("| **FAILED** 0.01 · – · 0.90 |"), "{table}");
        assert!(table.contains("| not run |") && table.contains(", 1 failed."), "{table}");
    }
}
