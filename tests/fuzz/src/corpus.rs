//! Writes the corpora: `cargo run -p tercet-fuzz-targets --bin corpus [DIR]`. What the fuzzer found
//! and somebody committed beside them (other names) stays.

use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let root = std::env::args_os().nth(1).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus"),
        PathBuf::from,
    );
    for (target, samples) in targets::samples::all() {
        let dir = root.join(target);
        std::fs::create_dir_all(&dir)?;
        for (name, bytes) in &samples {
            std::fs::write(dir.join(name), bytes)?;
        }
        println!("{target}: {} samples", samples.len());
    }
    Ok(())
}
