//! A guest: a Debian kernel with rxe under QEMU, without KVM, and a shell in it.
//!
//! - [`Image`] is what it boots, made once out of Debian packages.
//! - [`Overlay`] adds files of the host to that.
//! - [`Guest`] is a running one.
mod channel;
mod guest;
mod image;
mod overlay;
mod system;

pub use channel::Channel;
pub use guest::{Guest, Machine, Output};
pub use image::Image;
pub use overlay::{Overlay, libraries};
pub use system::run;
