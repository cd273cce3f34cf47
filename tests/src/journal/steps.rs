//! Which operation comes next, and performing it.

use super::Style;
use super::state::{Op, PAGE, State, page_bytes};
use crate::random::Random;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The file that an operation fills in several steps.
pub(super) fn grows(op: &Op) -> Option<&str> {
    match op {
        Op::Make(path, _) | Op::Append(path, _) | Op::Overwrite(path, _) => Some(path),
        _ => None,
    }
}

/// Operation `n`, and whether it is synced.
pub(super) fn next(style: Style, seed: u64, n: u64, now: &State) -> (Op, bool) {
    let mut random = Random::new(seed ^ n.wrapping_mul(0x9e6d_62d0_6f6a_9a9b));
    match style {
        Style::Append => (Op::Append(format!("big{}", n / 256), 16), n % 16 == 15),
        Style::SmallFiles if !now.dirs.contains(&format!("d{}", n / 100)) => {
            (Op::Mkdir(format!("d{}", n / 100)), n % 8 == 7)
        }
        Style::SmallFiles => {
            (Op::Make(format!("d{}/f{n}", n / 100), any_len(&mut random, 9000)), n % 8 == 7)
        }
        Style::Overwrites if now.names.is_empty() => (Op::Append("slots".into(), 64), true),
        Style::Overwrites => {
            (Op::Overwrite("slots".into(), usize::try_from(random.below(64)).unwrap_or(0)), true)
        }
        Style::Renames => (rename_or_make(&mut random, n, now), n % 16 == 15),
        Style::Mixed => (mixed(&mut random, n, now), n % 6 == 5),
    }
}

fn any_name(random: &mut Random) -> String {
    format!("d{}/n{}", random.below(2), random.below(30))
}

fn existing<'a>(random: &mut Random, now: &'a State) -> Option<&'a String> {
    let k = random.below(now.names.len().max(1) as u64);
    now.names.keys().nth(usize::try_from(k).unwrap_or(0))
}

fn rename_or_make(random: &mut Random, n: u64, now: &State) -> Op {
    let (from, to) = (existing(random, now).cloned(), any_name(random));
    match from {
        _ if now.dirs.len() < 2 => Op::Mkdir(format!("d{}", now.dirs.len())),
        Some(from) if now.names.len() >= 25 && from != to => Op::Rename(from, to),
        _ => make(random, n, now, to),
    }
}

fn make(random: &mut Random, n: u64, now: &State, name: String) -> Op {
    let name = if now.names.contains_key(&name) { format!("d0/x{n}") } else { name };
    Op::Make(name, any_len(random, 6000))
}

/// The last page has room for the name of who wrote it.
fn any_len(random: &mut Random, below: u64) -> usize {
    let len = usize::try_from(random.below(below)).unwrap_or(0);
    if len % PAGE < 8 { len + 8 } else { len }
}

fn mixed(random: &mut Random, n: u64, now: &State) -> Op {
    let to = any_name(random);
    let Some(from) = existing(random, now).cloned().filter(|_| now.names.len() >= 20) else {
        return rename_or_make(random, n, now);
    };
    let whole = now.content(&from).map_or(0, |c| c.len / PAGE);
    match random.below(8) {
        0 | 1 if whole > 0 => {
            Op::Overwrite(from, usize::try_from(random.below(whole as u64)).unwrap_or(0))
        }
        2 if now.content(&from).is_some_and(|c| c.len % PAGE == 0 && c.len < 64 * PAGE) => {
            Op::Append(from, 4)
        }
        // A rename over another name of the same file does nothing: it is a case of its own.
        3 | 4 if now.names.get(&to) != now.names.get(&from) => Op::Rename(from, to),
        5 if !now.names.contains_key(&to) => Op::Link(from, to),
        6 if now.names.len() > 40 || random.below(2) == 0 => Op::Unlink(from),
        7 if now.names.len() < 60 => Op::Append(format!("d1/p{n}"), 4),
        _ => make(random, n, now, to),
    }
}

pub(super) fn perform(
    dir: &Path,
    seed: u64,
    n: u64,
    op: &Op,
    sync: bool,
    now: &State,
) -> io::Result<()> {
    let write = |file: &File| -> io::Result<()> {
        let (at, pages) = now.written(n, op);
        let mut bytes = Vec::new();
        pages.iter().for_each(|(stamp, len)| bytes.extend(page_bytes(seed, *stamp, *len)));
        file.write_all_at(&bytes, (at * PAGE) as u64)?;
        if sync { file.sync_data() } else { Ok(()) }
    };
    match op {
        Op::Make(path, _) => {
            return write(&File::options().write(true).create_new(true).open(dir.join(path))?);
        }
        Op::Append(path, _) | Op::Overwrite(path, _) => {
            let mut options = File::options();
            let file = options.write(true).create(matches!(op, Op::Append(..))).truncate(false);
            return write(&file.open(dir.join(path))?);
        }
        Op::Mkdir(path) => fs::create_dir(dir.join(path))?,
        Op::Rename(from, to) => fs::rename(dir.join(from), dir.join(to))?,
        Op::Link(from, to) => fs::hard_link(dir.join(from), dir.join(to))?,
        Op::Unlink(path) => fs::remove_file(dir.join(path))?,
    }
    if sync { File::open(dir)?.sync_all() } else { Ok(()) }
}
