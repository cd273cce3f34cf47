//! A node in this process: the node's own service over a disk in memory.
