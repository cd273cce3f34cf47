//! Where the binaries are, and what the machine must offer.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The two programs under test.
#[derive(Debug)]
pub struct Programs {
    /// Storage node.
    pub storenode: PathBuf,
    /// Filesystem and its command line.
    pub tercet: PathBuf,
    /// Directory that holds both.
    pub dir: PathBuf,
}

/// The repository.
#[must_use]
pub fn repo() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map_or_else(|| tests.to_path_buf(), Path::to_path_buf)
}

/// Finds the binaries: `TERCET_BIN_DIR`, else beside the running test (`target/PROFILE`).
///
/// # Panics
/// When they are not there, with what to run.
pub fn programs() -> &'static Programs {
    static FOUND: OnceLock<Programs> = OnceLock::new();
    FOUND.get_or_init(|| {
        let dir = std::env::var_os("TERCET_BIN_DIR").map_or_else(beside_test, PathBuf::from);
        let dir = dir.canonicalize().unwrap_or(dir);
        let found = Programs { storenode: dir.join("storenode"), tercet: dir.join("tercet"), dir };
        for program in [&found.storenode, &found.tercet] {
            assert!(
                program.exists(),
                "{} is missing: run scripts/test (or cargo build --workspace --bins with the \
                 same profile as the tests, or set TERCET_BIN_DIR)",
                program.display()
            );
        }
        found
    })
}

fn beside_test() -> PathBuf {
    // target/PROFILE/deps/e2e-HASH -> target/PROFILE
    let exe = std::env::current_exe().expect("a running test has a path");
    let deps = exe.parent().unwrap_or(Path::new("."));
    deps.parent().unwrap_or(deps).to_path_buf()
}

/// Fails, with what to install, when a mount cannot work here. Nothing is skipped in silence.
///
/// # Panics
/// When /dev/fuse or root is missing.
pub fn require_environment() {
    assert!(
        rustix::process::geteuid().is_root(),
        "end-to-end tests mount filesystems and make device nodes: run them as root"
    );
    if let Err(e) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        panic!(
            "/dev/fuse cannot be opened ({e}): load the kernel module (modprobe fuse), give the \
             container the device (--device /dev/fuse --cap-add SYS_ADMIN), and install the \
             package fuse3"
        );
    }
    require_programs(&[("tar", "tar"), ("findmnt", "util-linux"), ("setfattr", "attr")]);
}

/// Fails, naming the packages to install, when one of these (program, package) is not there.
///
/// # Panics
/// When a program is missing.
pub fn require_programs(needed: &[(&str, &str)]) {
    // Daemons live in sbin, which the PATH of a plain user session lacks.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let missing: Vec<&(&str, &str)> =
        needed.iter().filter(|(p, _)| !dirs.iter().any(|d| d.join(p).exists())).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    assert!(
        missing.is_empty(),
        "missing programs {:?}: apt-get install {} (.ci/run and scripts/test do)",
        missing.iter().map(|(program, _)| *program).collect::<Vec<_>>(),
        packages.join(" ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "apt-get install its-package another")]
    fn a_missing_program_is_named_with_its_package() {
        let missing = [("no-such-program", "its-package"), ("sh", "dash"), ("nor-this", "another")];
        require_programs(&missing);
    }
}
