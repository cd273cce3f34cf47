//! Crash rounds at length: `scripts/test crash [FILTER]`. `TERCET_RUNS` rounds of each program (default 60);
//! `TERCET_SEED` replays the choices of a run.

use cluster::crash::{FSX, GIT, POSTGRES, Program, SQLITE, UNTAR, rounds};

fn at_length(program: &Program) {
    let runs = std::env::var("TERCET_RUNS").ok().filter(|r| !r.is_empty());
    let runs = runs.map_or(60, |r| r.parse().expect("TERCET_RUNS is a number"));
    let acknowledged = rounds(program, runs);
    println!("{}: {runs} rounds, {acknowledged} acknowledged operations, none lost", program.name);
}

#[test]
fn fsx() {
    at_length(&FSX);
}

#[test]
fn untar() {
    at_length(&UNTAR);
}

#[test]
fn git() {
    at_length(&GIT);
}

#[test]
fn sqlite() {
    at_length(&SQLITE);
}

#[test]
fn postgres() {
    at_length(&POSTGRES);
}
