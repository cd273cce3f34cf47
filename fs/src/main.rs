//! `tercet`: mounts and looks after a filesystem on three banks. All is in the library.

fn main() -> std::process::ExitCode {
    fs::cli::main()
}
