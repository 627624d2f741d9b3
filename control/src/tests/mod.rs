//! A whole daemon, spoken to in raw ABI.
mod admin;
mod destroy;
mod events;
mod gid;
mod hostile;
mod random;
mod session;
mod verbs;
mod wire;
