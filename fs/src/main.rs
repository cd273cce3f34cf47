//! `tercet`: mounts and looks after a filesystem on three banks. All is in the library.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    fs::cli::main()
}
