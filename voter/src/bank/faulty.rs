//! A bank that misbehaves from a seed.
