//! Nothing is read or written beyond the ends, shown by pages which nobody may touch on either side.

use std::ptr::null_mut;

use rnic_simd::Crc;
use rnic_wire::Crc32;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;

/// One page between two that fault.
struct Island(*mut u8);

impl Island {
    fn new() -> Self {
        // SAFETY: a new private mapping, of which the middle page is then opened; it is used by way of `Island` only.
        unsafe {
            let start = mmap_anonymous(null_mut(), 3 * PAGE, ProtFlags::empty(), MapFlags::PRIVATE).unwrap();
            let page = start.cast::<u8>().add(PAGE);
            mprotect(page.cast(), PAGE, MprotectFlags::READ | MprotectFlags::WRITE).unwrap();
            Self(page)
        }
    }

    /// Its first, and its last `len` bytes.
    fn ends(&self, len: usize) -> [*mut u8; 2] {
        // SAFETY: within the page.
        [self.0, unsafe { self.0.add(PAGE - len) }]
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`.
        unsafe { munmap(self.0.sub(PAGE).cast(), 3 * PAGE).unwrap() };
    }
}

#[test]
fn nothing_beyond_the_ends_is_touched() {
    let (source, destination) = (Island::new(), Island::new());
    for crc in Crc::usable() {
        for len in 0..=1100 {
            for (src, dst) in source.ends(len).into_iter().zip(destination.ends(len)) {
                // SAFETY: both ranges are within their islands, and nothing else refers to them.
                let (copied, read) = unsafe {
                    src.write_bytes(len as u8, len);
                    let copied = crc.copy_crc_raw(!0, dst, src, len);
                    (copied, crc.update(!0, std::slice::from_raw_parts(dst, len)))
                };
                assert_eq!(copied, read, "{} {len}", crc.name());
            }
        }
    }
}
