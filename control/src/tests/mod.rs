//! A whole daemon, spoken to in raw ABI.
mod destroy;
mod hostile;
mod session;
mod verbs;
mod wire;
