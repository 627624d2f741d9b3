//! CRC-32 and fused copy-and-CRC kernels, chosen once at run time, with a portable twin.
//!
//! | kernel | needs | step |
//! |---|---|---|
//! | `vpclmulqdq` | AVX-512 F, BW, VL, VBMI2 and VPCLMULQDQ | 256 bytes |
//! | `pclmulqdq` | PCLMULQDQ, SSE4.1 | 64 bytes |
//! | `portable` | nothing | 16 bytes by tables |
//!
//! All compute the same function: the CRC of Ethernet (and of the ICRC) on the raw register, see
//! [`Crc32`].

mod polynomial;
mod portable;
mod shared;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::mem::MaybeUninit;

use rnic_wire::{Crc32, Ones};

/// The environment variable [`Crc::detect`] obeys.
pub const OVERRIDE: &str = "RNIC_SIMD";

/// A kernel cannot be had by the name asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no CRC kernel `{name}` on this processor: those usable here are {}",
    usable_names()
)]
pub struct NoSuchKernel {
    /// The name asked for.
    pub name: String,
}

fn usable_names() -> String {
    Crc::usable().map(|crc| crc.name()).collect::<Vec<_>>().join(", ")
}

/// `(state, src, len)`; `src` readable for `len` bytes, which nobody writes meanwhile.
type Update = unsafe fn(u32, *const u8, usize) -> u32;
/// As [`Update`], with the bits that count as ones.
type UpdateWithOnes = unsafe fn(u32, *const u8, usize, &Ones) -> u32;
/// `(state, dst, src, len)`; see [`Crc::copy_crc_raw`].
type CopyCrc = unsafe fn(u32, *mut u8, *const u8, usize) -> u32;

/// A set of kernels, as function pointers: choose once at start, copy it to wherever it is used. Its methods never
/// allocate and may be called from any thread.
#[derive(Clone, Copy)]
pub struct Crc {
    name: &'static str,
    update: Update,
    /// None where nothing is gained by it.
    update_with_ones: Option<UpdateWithOnes>,
    copy: CopyCrc,
}

impl fmt::Debug for Crc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Crc").field(&self.name).finish()
    }
}

impl Crc {
    /// The fastest kernel this processor runs, unless the environment variable `RNIC_SIMD` names another usable one
    /// (`portable`, `pclmulqdq`, `vpclmulqdq`). Any other value is without effect: [`name`](Self::name) tells what was
    /// chosen. Reads the environment, so it belongs to start-up.
    pub fn detect() -> Self {
        std::env::var(OVERRIDE)
            .ok()
            .and_then(|name| Self::by_name(&name).ok())
            .unwrap_or_else(Self::fastest)
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// There is none, or this processor cannot run it.
    pub fn by_name(name: &str) -> Result<Self, NoSuchKernel> {
        Self::usable()
            .find(|crc| crc.name == name)
            .ok_or_else(|| NoSuchKernel {
                name: name.to_owned(),
            })
    }

    /// All kernels this processor runs, the fastest first.
    pub fn usable() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = [x86::vpclmul::kernel(), x86::pclmul::kernel()];
        #[cfg(not(target_arch = "x86_64"))]
        let fast: [Option<Self>; 0] = [];
        fast.into_iter().flatten().chain([Self::portable()])
    }

    fn fastest() -> Self {
        Self::usable().next().unwrap_or_else(Self::portable)
    }

    /// The kernel that needs no particular processor.
    pub const fn portable() -> Self {
        Self {
            name: "portable",
            update: portable::update,
            update_with_ones: None,
            copy: portable::copy_crc,
        }
    }

    /// Which kernel this is.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Copies `src` to the beginning of `dst` and returns the register after its bytes, in one pass.
    ///
    /// # Panics
    /// If `dst` is shorter than `src`.
    #[inline]
    pub fn copy_crc(&self, state: u32, dst: &mut [MaybeUninit<u8>], src: &[u8]) -> u32 {
        assert!(
            dst.len() >= src.len(),
            "{} bytes do not fit into {}",
            src.len(),
            dst.len()
        );
        // SAFETY: both are valid for `src.len()` bytes, by their types and the assertion; the kernel was chosen for this
        // processor.
        unsafe { (self.copy)(state, dst.as_mut_ptr().cast(), src.as_ptr(), src.len()) }
    }

    /// [`copy_crc`](Self::copy_crc) for memory that other processes may write at the same time. The CRC is that of the
    /// bytes stored at `dst`, whatever becomes of `src`: each byte is used for both as it was read once.
    ///
    /// If the ranges overlap, the bytes stored are unspecified; nothing else is at stake.
    ///
    /// # Safety
    /// `src` is mapped for reads and `dst` for writes of `len` bytes (any alignment), and the program holds no
    /// reference to any byte of `dst`, and no exclusive one to any of `src`.
    #[inline]
    pub unsafe fn copy_crc_raw(&self, state: u32, dst: *mut u8, src: *const u8, len: usize) -> u32 {
        // SAFETY: passed on to the caller; the kernel was chosen for this processor.
        unsafe { (self.copy)(state, dst, src, len) }
    }
}

impl Crc32 for Crc {
    #[inline]
    fn update(&self, state: u32, bytes: &[u8]) -> u32 {
        // SAFETY: `bytes` is a slice; the kernel was chosen for this processor.
        unsafe { (self.update)(state, bytes.as_ptr(), bytes.len()) }
    }

    #[inline]
    fn update_with_ones(&self, state: u32, bytes: &[u8], ones: &Ones) -> u32 {
        match self.update_with_ones {
            // SAFETY: as above.
            Some(update) => unsafe { update(state, bytes.as_ptr(), bytes.len(), ones) },
            None => ByParts(self).update_with_ones(state, bytes, ones),
        }
    }
}

/// The trait's own way with ones, over a kernel's plain one.
struct ByParts<'a>(&'a Crc);

impl Crc32 for ByParts<'_> {
    #[inline]
    fn update(&self, state: u32, bytes: &[u8]) -> u32 {
        self.0.update(state, bytes)
    }
}
