//! Asynchronous events: how they get into a client's ring, and what the daemon itself does about them.

mod relay;
mod ring;

pub use relay::LastError;
pub use ring::EventRing;
