//! Reading captures: pcap and pcapng, as records in the order of their times.

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The magic number of a pcapng section header.
const PCAPNG: [u8; 4] = [0x0A, 0x0D, 0x0D, 0x0A];

/// Why a capture cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no capture, or one that ends in the middle.
    #[error("no pcap or pcapng file, or a damaged one: {0}")]
    Format(#[from] PcapError),
    /// It holds something else than Ethernet.
    #[error("the capture holds {0:?} frames; only Ethernet can be checked")]
    LinkType(DataLink),
    /// Every frame was cut when it was captured. Where only some were, they count as missed.
    #[error(
        "frame {number} has {original} bytes, of which {captured} were captured: capture whole frames (tcpdump -s 0)"
    )]
    Cut {
        /// The frame, counted from 1.
        number: usize,
        /// Bytes in the file.
        captured: usize,
        /// Bytes on the wire.
        original: usize,
    },
    /// A packet block names no interface.
    #[error("frame {number} belongs to interface {interface}, which the capture does not describe")]
    Interface {
        /// The frame, counted from 1.
        number: usize,
        /// The interface it names.
        interface: u32,
    },
}

/// A captured frame.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number in the file, from 1, as Wireshark shows it.
    pub number: usize,
    /// Nanoseconds since 1970.
    pub nanos: u64,
    /// Whether the host that captured it sent it (`true`) or received it; `None` when the capture does not say.
    pub sent: Option<bool>,
    /// Frames that went by uncaptured just before this one.
    pub missed: u64,
    /// The frame from its Ethernet header on.
    pub bytes: Vec<u8>,
}

/// What a capture file holds.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    /// Its frames in the order of their times.
    pub records: Vec<Record>,
    /// The file ends in the middle of a block: whoever wrote it was killed, or still writes. What comes before is whole.
    pub truncated: bool,
}

/// Reads a capture file.
///
/// # Errors
/// When it cannot be read, or holds frames that are cut or no Ethernet.
pub fn read(path: &Path) -> Result<Capture, CaptureError> {
    let bytes = std::fs::read(path).map_err(|source| CaptureError::File {
        path: path.into(),
        source,
    })?;
    parse(&bytes)
}

/// Reads a capture from memory. Several queues of a port are captured side by side, so frames are put in the order of
/// their times; those of the same time keep theirs.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8]) -> Result<Capture, CaptureError> {
    let mut intake = Intake::default();
    let end = if bytes.starts_with(&PCAPNG) {
        parse_pcapng(bytes, &mut intake)
    } else {
        parse_pcap(bytes, &mut intake)
    };
    let Intake { mut records, cut, .. } = intake;
    let truncated = match end {
        Ok(()) => false,
        Err(CaptureError::Format(PcapError::IoError(error)))
            if error.kind() == ErrorKind::UnexpectedEof && !records.is_empty() =>
        {
            true
        }
        Err(error) => return Err(error),
    };
    if let Some(cut) = cut.filter(|_| records.is_empty()) {
        return Err(cut);
    }
    records.sort_by_key(|record| record.nanos);
    Ok(Capture { records, truncated })
}

/// Takes frames in as a file has them.
#[derive(Default)]
struct Intake {
    records: Vec<Record>,
    number: usize,
    /// Frames missed since the last whole one.
    missed: u64,
    /// The first frame that was cut.
    cut: Option<CaptureError>,
}

impl Intake {
    /// A frame of which `bytes` were captured; one that was cut counts as missed.
    fn take(&mut self, nanos: u128, bytes: &[u8], original: u32, options: &[EnhancedPacketOption<'_>]) {
        self.number += 1;
        let mut sent = None;
        for option in options {
            match option {
                EnhancedPacketOption::Flags(flags) => {
                    sent = [None, Some(false), Some(true), None][(flags & 3) as usize]
                }
                EnhancedPacketOption::DropCount(count) => self.missed += count,
                _ => {}
            }
        }
        let (number, captured, original) = (self.number, bytes.len(), original as usize);
        if captured < original {
            self.missed += 1;
            self.cut.get_or_insert(CaptureError::Cut {
                number,
                captured,
                original,
            });
            return;
        }
        self.records.push(Record {
            number,
            nanos: nanos as u64,
            sent,
            missed: std::mem::take(&mut self.missed),
            bytes: bytes.to_vec(),
        });
    }
}

fn parse_pcap(bytes: &[u8], intake: &mut Intake) -> Result<(), CaptureError> {
    let mut reader = PcapReader::new(bytes)?;
    if reader.header().datalink != DataLink::ETHERNET {
        return Err(CaptureError::LinkType(reader.header().datalink));
    }
    while let Some(packet) = reader.next_packet() {
        let packet = packet?;
        intake.take(packet.timestamp.as_nanos(), &packet.data, packet.orig_len, &[]);
    }
    Ok(())
}

fn parse_pcapng(bytes: &[u8], intake: &mut Intake) -> Result<(), CaptureError> {
    let mut reader = PcapNgReader::new(bytes)?;
    // Time units in a second, by interface.
    let mut units: Vec<u64> = Vec::new();
    while let Some(block) = reader.next_block() {
        match block? {
            Block::SectionHeader(_) => units.clear(),
            Block::InterfaceDescription(interface) => {
                if interface.linktype != DataLink::ETHERNET {
                    return Err(CaptureError::LinkType(interface.linktype));
                }
                let resolution = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfTsResol(code) => Some(*code),
                    _ => None,
                });
                units.push(units_per_second(resolution.unwrap_or(6)));
            }
            Block::EnhancedPacket(packet) => {
                let interface = packet.interface_id;
                let Some(units) = units.get(interface as usize) else {
                    let number = intake.number + 1;
                    return Err(CaptureError::Interface { number, interface });
                };
                // The library takes every unit for a nanosecond.
                let nanos = packet.timestamp.as_nanos() * 1_000_000_000 / u128::from(*units);
                intake.take(nanos, &packet.data, packet.original_len, &packet.options);
            }
            _ => {}
        }
    }
    Ok(())
}

/// What an `if_tsresol` byte means: a power of ten, or of two when its top bit is set.
fn units_per_second(code: u8) -> u64 {
    let exponent = u32::from(code & 0x7F);
    let base: u64 = if code & 0x80 == 0 { 10 } else { 2 };
    base.checked_pow(exponent).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_units_are_powers_of_ten_or_of_two() {
        assert_eq!(units_per_second(6), 1_000_000);
        assert_eq!(units_per_second(9), 1_000_000_000);
        assert_eq!(units_per_second(0x80 | 10), 1024);
        assert_eq!(units_per_second(0x7F), u64::MAX);
    }

    #[test]
    fn garbage_is_no_capture() {
        assert!(matches!(parse(b"what is this?"), Err(CaptureError::Format(_))));
    }

    #[test]
    fn a_frame_that_was_cut_counts_as_missed_by_the_next_one() {
        let mut intake = Intake::default();
        let drops = [EnhancedPacketOption::DropCount(2), EnhancedPacketOption::Flags(2)];
        intake.take(5, &[0; 60], 1500, &drops);
        assert!(matches!(
            intake.cut,
            Some(CaptureError::Cut {
                number: 1,
                captured: 60,
                original: 1500
            })
        ));
        intake.take(6, &[0; 60], 60, &drops);
        let record = &intake.records[0];
        assert_eq!((record.number, record.missed, record.sent), (2, 5, Some(true)));
    }
}
