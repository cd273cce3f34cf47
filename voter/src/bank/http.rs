//! A node reached over HTTP.
