//! Every bound of the filesystem, once, with its unit.

/// Longest name of a directory entry, bytes.
pub const NAME_LEN_MAX: usize = 255;
/// Longest symbolic link target, bytes.
pub const SYMLINK_LEN_MAX: usize = 4095;
/// Most links to one inode.
pub const LINKS_MAX: u32 = i32::MAX as u32;
/// Largest file, bytes (the kernel's own limit is `i64::MAX`).
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// Longest name of an extended attribute, bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// Longest value of an extended attribute, bytes.
pub const XATTR_VALUE_MAX: usize = 64 << 10;
/// Longest list of names of one inode (with their terminators), bytes.
pub const XATTR_LIST_MAX: usize = 64 << 10;
/// All names and values of one inode, bytes; they are read together.
pub const XATTR_TOTAL_MAX: usize = 1 << 20;

/// Block size of a new volume unless `format` is told otherwise, bytes.
pub const BLOCK_SIZE_DEFAULT: u32 = 16 << 10;
/// Smallest block size, bytes.
pub const BLOCK_SIZE_MIN: u32 = 4 << 10;
/// Largest block size, bytes (a record holds at most 4 MiB).
pub const BLOCK_SIZE_MAX: u32 = 1 << 20;
/// Blocks with consecutive numbers that lie on one shard.
pub const RUN_BLOCKS: u64 = 64;

/// Most bytes of data that one group takes from one write; longer ones are a row of groups.
pub const WRITE_BYTES_MAX: usize = 4 << 20;
/// Most bytes that one call of `copy_file_range` moves; callers go on with the rest.
pub const COPY_BYTES_MAX: u64 = 16 << 20;
/// Truncation and punching up to this many blocks delete them in the same group; above it the
/// range is marked dead and reclaimed later.
pub const TRIM_INLINE_BLOCKS: u64 = 64;
/// Deletes in one group of background reclaim.
pub const RECLAIM_BATCH: usize = 8192;
/// Dead ranges of one inode; a write that would split them further waits for reclaim.
pub const DEAD_RANGES_MAX: usize = 256;
/// Pause between two groups of background reclaim, milliseconds.
pub const RECLAIM_PAUSE_MS: u64 = 5;
/// Inode numbers reserved at once (one record write); at most so many are lost at a crash.
pub const INO_CHUNK: u64 = 16 << 10;

/// Attempts of one operation, each after loading what the last one missed.
pub const ATTEMPTS_MAX: u32 = 64;
/// After so many, nothing is evicted until it has completed: what it loaded was pushed out by others each
/// time. Then nobody has to try for long, so that eviction goes on soon.
pub const ATTEMPTS_ALONE: u32 = 8;
/// Entries of one page of a directory scan.
pub const DIR_PAGE: usize = 1024;
/// Directories up to this many entries are loaded whole sooner or later.
pub const DIR_WHOLE_MAX: u64 = 1024;
/// For each so many entries of such a directory one name is asked for alone: who looks up one name here and
/// one there pays little, who looks up many soon has all.
pub const DIR_WHOLE_PER_MISS: u64 = 128;
/// Inodes that a lookup reads besides the one that it needs, at most.
pub const INODES_BESIDE_MAX: u64 = 256;
/// Names that a walk through a tree reads ahead, at first and at most.
pub const WALK_NAMES_MIN: usize = 128;
/// See [`WALK_NAMES_MIN`].
pub const WALK_NAMES_MAX: usize = 4096;
/// In a directory of more entries nothing is loaded ahead of a walk: it would have to look through all of
/// them to see where what it knows begins.
pub const WALK_SIBLINGS_MAX: usize = 4096;
/// After loads ahead that failed, directories that are loaded alone before the next one, at most.
pub const WALK_REST_MAX: u32 = 256;
/// What is read ahead of names and inodes is given up after this long, milliseconds.
pub const LOOK_AHEAD_MS: u64 = 250;
/// Largest read-ahead, bytes.
pub const READAHEAD_BYTES_MAX: u64 = 4 << 20;
/// First read-ahead of a sequential reader, bytes.
pub const READAHEAD_BYTES_MIN: u64 = 256 << 10;
/// A read of so many bytes at once is a stream's; see `passing` in `ops/data.rs`.
pub const STREAM_READ_BYTES: u32 = 128 << 10;
/// Age after which a read updates an atime that is newer than mtime (relatime), seconds.
pub const ATIME_AGE_S: i64 = 24 * 3600;
/// How long `statfs` repeats its last answer, milliseconds.
pub const STATFS_AGE_MS: u64 = 1000;

/// Bounds of the caches. Soft by what the operations in flight have just loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheLimits {
    /// Inodes (about 300 bytes each).
    pub inodes: usize,
    /// Directory entries, negative ones included (about 120 bytes each).
    pub dirents: usize,
    /// Blocks of file data, bytes.
    pub block_bytes: usize,
    /// Extended attributes, bytes.
    pub xattr_bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { inodes: 256 << 10, dirents: 512 << 10, block_bytes: 256 << 20, xattr_bytes: 8 << 20 }
    }
}

impl CacheLimits {
    /// A handful of everything: tests use it so that misses and reloads happen.
    #[must_use]
    pub fn tiny() -> Self {
        Self { inodes: 4, dirents: 4, block_bytes: 8 << 10, xattr_bytes: 256 }
    }
}
