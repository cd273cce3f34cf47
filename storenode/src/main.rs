//! `storenode`: serve a storage node, look into one, break one on purpose.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
