//! A whole daemon, spoken to in raw ABI.
mod admin;
mod destroy;
mod hostile;
mod session;
mod verbs;
mod wire;
