//! A whole daemon, spoken to in raw ABI.
mod admin;
mod ah;
mod ah_at_once;
mod batch;
mod blocking;
mod destroy;
mod events;
mod gid;
mod hostile;
mod hotplug;
mod invalidate;
mod neighbours;
mod random;
mod restore;
mod session;
mod verbs;
mod wire;
