//! Seeded randomness that never changes with a dependency, so that old seeds replay for ever.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From `TERCET_SEED`, else from the clock; printed, so that a failure can be replayed.
    #[must_use]
    pub fn from_env(what: &str) -> Self {
        let seed = match std::env::var("TERCET_SEED") {
            Ok(s) => s.parse().unwrap_or_else(|_| panic!("TERCET_SEED={s} is not a number")),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| u64::from(d.subsec_nanos()) ^ d.as_secs()),
        };
        println!("{what}: seed {seed} (replay: TERCET_SEED={seed})");
        Self(seed)
    }

    /// Next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `0..n`; `n` is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    /// `len` bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.draw().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// The bytes of block `n` of a generated file: any block can be checked without the others.
#[must_use]
pub fn block(seed: u64, n: u64, len: usize) -> Vec<u8> {
    Random::new(seed ^ n.wrapping_mul(0xd6e8_feb8_6659_fd93)).bytes(len)
}
