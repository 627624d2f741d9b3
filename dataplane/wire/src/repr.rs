//! Emitting frames: a representation of all headers, and a template of those that do not change within a flow.

use crate::ethernet::ETHERNET_LEN;
use crate::ip::{IPV6_LEN, IpVersion, Net, fold};
use crate::udp::UDP_LEN;
use crate::{Crc32, EmitError, Headers, ICRC_LEN, Icrc, Link, MAX_HEADER_LEN, ROCE_UDP_PORT, pad_len};

/// The longest Ethernet, IP and UDP headers together: two tags and IPv6.
const MAX_PREFIX_LEN: usize = 22 + IPV6_LEN + UDP_LEN;

/// The longest headers of any frame, from Ethernet to the payload.
pub const MAX_FRAME_HEADER_LEN: usize = MAX_PREFIX_LEN + MAX_HEADER_LEN;

/// All headers of one frame. Lengths, checksums and the pad count are worked out when it is emitted.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FrameRepr {
    /// Ethernet header.
    pub link: Link,
    /// Network header.
    pub net: Net,
    /// UDP source port.
    pub udp_src_port: u16,
    /// Transport headers; `bth.pad` is ignored.
    pub headers: Headers,
}

impl FrameRepr {
    /// Writes all headers from Ethernet up to the payload to the start of `out` and returns their length.
    ///
    /// See [`FrameTemplate::emit_headers`], which this is for a flow of one frame.
    ///
    /// # Errors
    /// Those of [`FrameTemplate::emit_headers`].
    pub fn emit_headers(&self, payload_len: usize, out: &mut [u8]) -> Result<usize, EmitError> {
        let ident = match self.net {
            Net::V4(ip) => ip.ident,
            Net::V6(_) => 0,
        };
        FrameTemplate::new(self.link, self.net, self.udp_src_port).emit_headers(
            &self.headers,
            ident,
            payload_len,
            out,
        )
    }

    /// Writes the whole frame (headers, payload, pad, ICRC) to the start of `out` and returns its length.
    ///
    /// For control frames and tests; the data path writes the payload through a fused copy-and-CRC kernel instead.
    ///
    /// # Errors
    /// Those of [`FrameTemplate::emit_headers`], and an output too small for payload, pad and ICRC.
    pub fn emit_frame(&self, crc: &impl Crc32, payload: &[u8], out: &mut [u8]) -> Result<usize, EmitError> {
        let have = out.len();
        let header_len = self.emit_headers(payload.len(), out)?;
        let pad = pad_len(payload.len()) as usize;
        let need = header_len + payload.len() + pad + ICRC_LEN;
        let too_small = EmitError::BufferTooSmall { need, have };
        let (headers, rest) = out.split_at_mut_checked(header_len).ok_or(too_small)?;
        let (body, rest) = rest.split_at_mut_checked(payload.len() + pad).ok_or(too_small)?;
        let (copied, padding) = body.split_at_mut_checked(payload.len()).ok_or(too_small)?;
        copied.copy_from_slice(payload);
        padding.fill(0);
        let covered = headers.get(self.link.byte_len()..).ok_or(too_small)?;
        let state = Icrc::start(crc, covered, self.net.version());
        let state = crc.update(state, body);
        *rest.first_chunk_mut().ok_or(too_small)? = Icrc::finish(state);
        Ok(need)
    }
}

/// The Ethernet, IP and UDP headers of a flow, laid out once; emitting a frame copies them and fills in what varies.
///
/// A cache in the sense of QP state: it can be rebuilt from the address vector at any time.
#[derive(Copy, Clone, Debug)]
pub struct FrameTemplate {
    prefix: [u8; MAX_PREFIX_LEN],
    prefix_len: u8,
    ip_start: u8,
    version: IpVersion,
    /// Sum of IPv4's words without total length, identification and checksum.
    partial_sum: u32,
}

impl FrameTemplate {
    /// Lays out the headers of a flow. An IPv4 identification in `net` is ignored: each frame brings its own.
    pub fn new(link: Link, net: Net, udp_src_port: u16) -> Self {
        let net = match net {
            Net::V4(ip) => Net::V4(crate::Ipv4 { ident: 0, ..ip }),
            v6 => v6,
        };
        let mut prefix = [0; MAX_PREFIX_LEN];
        let mut rest = prefix.as_mut_slice();
        link.emit(net.ethertype(), &mut rest);
        net.emit_without_length(&mut rest);
        crate::bytes::put(&mut rest, udp_src_port.to_be_bytes());
        crate::bytes::put(&mut rest, ROCE_UDP_PORT.to_be_bytes());
        let ip_start = link.byte_len();
        let version = net.version();
        let ip_header = prefix.iter().skip(ip_start).take(version.header_len());
        let partial_sum = ip_header
            .enumerate()
            .map(|(i, byte)| (*byte as u32) << (8 * (1 - (i & 1))))
            .sum();
        FrameTemplate {
            prefix,
            prefix_len: (ip_start + version.header_len() + UDP_LEN) as u8,
            ip_start: ip_start as u8,
            version,
            partial_sum,
        }
    }

    /// Offset of the IP header in the frame: where the ICRC's coverage begins.
    #[inline]
    pub const fn ip_start(&self) -> usize {
        self.ip_start as usize
    }

    /// The IP version, as [`Icrc::start`] wants it.
    #[inline]
    pub const fn version(&self) -> IpVersion {
        self.version
    }

    /// Bytes of Ethernet, IP and UDP.
    #[inline]
    pub const fn prefix_len(&self) -> usize {
        self.prefix_len as usize
    }

    /// Writes all headers from Ethernet up to the payload to the start of `out` and returns their length.
    ///
    /// `payload_len` is the payload without pad; the pad count and the lengths of IP and UDP, which include pad and
    /// ICRC, follow from it. `ident` is IPv4's identification and unused on IPv6. UDP's checksum is left zero on both,
    /// as Linux does. The caller then writes payload, [`pad_len`] zero bytes and the ICRC.
    ///
    /// # Errors
    /// Those of [`Headers::emit`]; a payload too long for IP, or one behind an opcode that has none.
    #[inline]
    pub fn emit_headers(
        &self,
        headers: &Headers,
        ident: u16,
        payload_len: usize,
        out: &mut [u8],
    ) -> Result<usize, EmitError> {
        let opcode = headers.bth.opcode;
        if payload_len != 0 && !opcode.has_payload() {
            return Err(EmitError::UnexpectedPayload {
                opcode,
                len: payload_len,
            });
        }
        let pad = pad_len(payload_len);
        let prefix_len = self.prefix_len();
        let ib_len = headers.len() + pad as usize + ICRC_LEN;
        // The total length of IPv4 counts the IP header, the payload length of IPv6 does not.
        let ip_len = match self.version {
            IpVersion::V4 => prefix_len - self.ip_start() + ib_len,
            IpVersion::V6 => UDP_LEN + ib_len,
        };
        let too_long = EmitError::PayloadTooLong { len: payload_len };
        let ip_len = payload_len
            .checked_add(ip_len)
            .and_then(|len| u16::try_from(len).ok())
            .ok_or(too_long)?;
        let have = out.len();
        let too_small = EmitError::BufferTooSmall {
            need: prefix_len + headers.len(),
            have,
        };

        let (head, ib) = self.copy_prefix(out).ok_or(too_small)?;
        let header_len = headers.emit_with_pad(pad, ib).map_err(|error| match error {
            EmitError::BufferTooSmall { .. } => too_small,
            other => other,
        })?;
        let udp_len = match self.version {
            IpVersion::V4 => {
                self.fill_ipv4(head, ip_len, ident).ok_or(too_small)?;
                ip_len - crate::IPV4_LEN as u16
            }
            IpVersion::V6 => {
                let at = self.ip_start() + 4;
                head.get_mut(at..at + 2)
                    .ok_or(too_small)?
                    .copy_from_slice(&ip_len.to_be_bytes());
                ip_len
            }
        };
        let [.., len_high, len_low, _, _] = head else {
            return Err(too_small);
        };
        [*len_high, *len_low] = udp_len.to_be_bytes();
        Ok(prefix_len + header_len)
    }

    /// Its bytes from IP on, if it has no VLAN tags.
    #[inline]
    pub(crate) fn untagged_ip(&self) -> Option<&[u8]> {
        let (_, ip) = self.prefix.split_first_chunk::<ETHERNET_LEN>()?;
        (self.ip_start as usize == ETHERNET_LEN).then_some(ip)
    }

    /// Copies the prefix and splits `out` behind it.
    #[inline]
    pub(crate) fn copy_prefix<'o>(&self, out: &'o mut [u8]) -> Option<(&'o mut [u8], &'o mut [u8])> {
        // A copy of fixed size is a few vector moves; what it writes too much is overwritten by the BTH.
        if let Some(whole) = out.first_chunk_mut::<MAX_PREFIX_LEN>() {
            *whole = self.prefix;
            return out.split_at_mut_checked(self.prefix_len());
        }
        let (head, rest) = out.split_at_mut_checked(self.prefix_len())?;
        head.copy_from_slice(self.prefix.get(..head.len())?);
        Some((head, rest))
    }

    #[inline]
    pub(crate) fn fill_ipv4(&self, head: &mut [u8], total: u16, ident: u16) -> Option<()> {
        let ip = head.get_mut(self.ip_start()..)?.first_chunk_mut::<12>()?;
        let sum = self.partial_sum as u64 + total as u64 + ident as u64;
        let [t0, t1] = total.to_be_bytes();
        let [i0, i1] = ident.to_be_bytes();
        let [c0, c1] = (!fold(sum)).to_be_bytes();
        (ip[2], ip[3], ip[4], ip[5], ip[10], ip[11]) = (t0, t1, i0, i1, c0, c1);
        Some(())
    }
}
