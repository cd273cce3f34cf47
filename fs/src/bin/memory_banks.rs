//! `tercet` that can also keep its banks in memory (see iozone/ladder).

fn main() -> std::process::ExitCode {
    fs::cli::main()
}
