//! One packet buffer.

use std::ptr::NonNull;
use std::slice;

use crate::ffi;

/// An owned packet buffer: one segment, or a chain when a driver received it so. Freed when dropped.
///
/// It points to `rte_mbuf` and is exactly a pointer in size, so arrays of buffers are what DPDK's
/// burst functions take. Buffers are never shared: this layer has no way to clone one, which is why
/// data may be borrowed mutably.
#[repr(transparent)]
pub struct Mbuf(NonNull<ffi::rte_mbuf>);

// SAFETY: an mbuf has no tie to a thread; pools take frees from any thread.
unsafe impl Send for Mbuf {}

/// Why a buffer could not be changed as asked. It is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MbufError {
    /// The length does not fit into the segment.
    #[error("the length does not fit into the buffer's segment")]
    NoRoom,
    /// The operation is for buffers of one segment.
    #[error("the buffer has several segments; linearise it first")]
    Segmented,
}

impl Mbuf {
    /// Takes ownership of a raw buffer.
    ///
    /// # Safety
    /// `raw` must be an allocated, initialised mbuf that nothing else owns or references.
    pub unsafe fn from_raw(raw: NonNull<ffi::rte_mbuf>) -> Self {
        Mbuf(raw)
    }

    /// Gives ownership away; the caller must free the buffer or hand it to DPDK.
    pub fn into_raw(self) -> NonNull<ffi::rte_mbuf> {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }

    fn header(&self) -> &ffi::rte_mbuf {
        // SAFETY: the buffer is owned by `self`: allocated, initialised, and touched by nobody else.
        unsafe { self.0.as_ref() }
    }

    fn header_mut(&mut self) -> &mut ffi::rte_mbuf {
        // SAFETY: as for `header`, and `self` is borrowed mutably.
        unsafe { self.0.as_mut() }
    }

    /// Start of the data of the first segment.
    pub fn data_ptr(&self) -> *mut u8 {
        let header = self.header();
        // DPDK keeps data_off <= buf_len, so this stays inside the segment or at its end.
        header
            .buf_addr
            .cast::<u8>()
            .wrapping_add(usize::from(header.data_off))
    }

    /// Bytes in the first segment: the whole frame if there is only one.
    pub fn data(&self) -> &[u8] {
        // SAFETY: data_len bytes from data_ptr lie inside the segment, which `self` owns. Pool
        // memory is zeroed when mapped, so it is initialised even where no frame was written.
        unsafe { slice::from_raw_parts(self.data_ptr(), usize::from(self.header().data_len)) }
    }

    /// As [`Mbuf::data`], to write. Bytes just added hold what the buffer's previous user left.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`, and `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.data_ptr(), usize::from(self.header().data_len)) }
    }

    /// Bytes in the first segment.
    pub fn data_len(&self) -> u16 {
        self.header().data_len
    }

    /// Bytes in all segments.
    pub fn pkt_len(&self) -> u32 {
        self.header().pkt_len
    }

    /// Number of segments; one for every buffer this layer allocates.
    pub fn nb_segs(&self) -> u16 {
        self.header().nb_segs
    }

    /// Free bytes before the data.
    pub fn headroom(&self) -> u16 {
        self.header().data_off
    }

    /// Free bytes after the data of the first segment.
    pub fn tailroom(&self) -> u16 {
        let header = self.header();
        header
            .buf_len
            .saturating_sub(header.data_off)
            .saturating_sub(header.data_len)
    }

    /// Port the frame came in by; meaningless for a buffer that was not received.
    pub fn port(&self) -> u16 {
        self.header().port
    }

    /// The 802.1Q tag control information (host byte order) that the device removed from the frame;
    /// `None` if the frame had no tag or still carries it.
    pub fn stripped_vlan(&self) -> Option<u16> {
        let stripped = ffi::DPDK_RX_VLAN | ffi::DPDK_RX_VLAN_STRIPPED;
        let header = self.header();
        (header.ol_flags & stripped == stripped).then_some(header.vlan_tci)
    }

    /// Sets the length of a one-segment frame, keeping its start.
    ///
    /// # Errors
    /// [`MbufError::NoRoom`] beyond the segment's end, [`MbufError::Segmented`] for a chain.
    pub fn set_len(&mut self, len: u16) -> Result<(), MbufError> {
        let room = self.header().buf_len.saturating_sub(self.header().data_off);
        if self.nb_segs() != 1 {
            return Err(MbufError::Segmented);
        }
        if len > room {
            return Err(MbufError::NoRoom);
        }
        let header = self.header_mut();
        header.data_len = len;
        header.pkt_len = u32::from(len);
        Ok(())
    }

    /// Moves the start of the frame `n` bytes forward, dropping those bytes.
    ///
    /// # Errors
    /// [`MbufError::NoRoom`] if the first segment is shorter.
    pub fn trim_front(&mut self, n: u16) -> Result<(), MbufError> {
        let header = self.header_mut();
        let len = header.data_len.checked_sub(n).ok_or(MbufError::NoRoom)?;
        header.data_len = len;
        header.data_off += n;
        header.pkt_len -= u32::from(n);
        Ok(())
    }

    /// Moves the start of the frame `n` bytes back into the headroom. The bytes gained hold what was
    /// there before.
    ///
    /// # Errors
    /// [`MbufError::NoRoom`] if the headroom is smaller, or the frame would pass 65,535 bytes.
    pub fn prepend(&mut self, n: u16) -> Result<(), MbufError> {
        let header = self.header_mut();
        let offset = header.data_off.checked_sub(n).ok_or(MbufError::NoRoom)?;
        let len = header.data_len.checked_add(n).ok_or(MbufError::NoRoom)?;
        header.data_off = offset;
        header.data_len = len;
        header.pkt_len += u32::from(n);
        Ok(())
    }

    /// Puts `tail` behind this frame as further segments.
    ///
    /// # Errors
    /// Hands `tail` back if the chain would be too long for DPDK.
    pub fn chain(&mut self, tail: Mbuf) -> Result<(), Mbuf> {
        // SAFETY: both are owned, distinct buffers; on success the chain owns `tail`.
        match unsafe { ffi::dpdk_mbuf_chain(self.0.as_ptr(), tail.0.as_ptr()) } {
            0 => {
                std::mem::forget(tail);
                Ok(())
            }
            _ => Err(tail),
        }
    }

    /// Copies all segments into the first. Does nothing for one segment.
    ///
    /// # Errors
    /// [`MbufError::NoRoom`] if the frame is longer than the first segment can hold.
    pub fn linearise(&mut self) -> Result<(), MbufError> {
        if self.nb_segs() == 1 {
            return Ok(());
        }
        // SAFETY: the chain is owned and valid; DPDK frees the segments it empties, and touches
        // nothing when it fails.
        match unsafe { ffi::dpdk_mbuf_linearise(self.0.as_ptr()) } {
            0 => Ok(()),
            _ => Err(MbufError::NoRoom),
        }
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: `self` owns the buffer. Its pool exists: pools with buffers out are never freed.
        unsafe { ffi::dpdk_mbuf_free(self.0.as_ptr()) };
    }
}

impl std::fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mbuf")
            .field("pkt_len", &self.pkt_len())
            .field("nb_segs", &self.nb_segs())
            .finish_non_exhaustive()
    }
}
