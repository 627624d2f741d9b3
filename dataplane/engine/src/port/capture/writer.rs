//! The thread that writes a capture.
use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufWriter, Write},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use pcap_file::{
    DataLink, Endianness, PcapError,
    pcapng::{
        PcapNgBlock, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
        },
    },
};

use super::{CaptureSpec, Exchange, Record, Shared, wall_clock};
use crate::port::OpenPort;

/// How long the writer sleeps when there is nothing to write.
const PAUSE: Duration = Duration::from_millis(1);
/// `if_tsresol` for nanoseconds.
const NANOSECONDS: u8 = 9;
/// Bytes kept free below the limit for the block with the totals.
const CLOSING_BYTES: u64 = 256;
/// Bytes of a packet block beside the frame: header, trailer, options, padding.
const BLOCK_BYTES: u64 = 64;

pub(super) struct Writer {
    out: PcapNgWriter<BufWriter<File>>,
    path: PathBuf,
    written: u64,
    limit: u64,
    start: u64,
    shared: Arc<Shared>,
    exchanges: Vec<Exchange>,
}

impl Writer {
    /// Begins the file with the description of the port.
    pub fn new(
        file: File,
        port: &OpenPort,
        snap: usize,
        spec: &CaptureSpec,
        shared: Arc<Shared>,
        exchanges: Vec<Exchange>,
    ) -> io::Result<Self> {
        // Big-endian, because that is how pcap-file gets the halves of 64-bit timestamps in the order the format
        // wants.
        let out = PcapNgWriter::with_endianness(BufWriter::with_capacity(256 << 10, file), Endianness::Big);
        let mut writer = Writer {
            out: out.map_err(into_io)?,
            path: spec.path.clone(),
            written: 28,
            limit: spec.limit_bytes,
            start: wall_clock(),
            shared,
            exchanges,
        };
        writer.write(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: snap as u32,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(port.name.as_str())),
                InterfaceDescriptionOption::IfDescription(Cow::Borrowed(port.driver.as_str())),
                InterfaceDescriptionOption::IfMacAddr(Cow::Borrowed(&port.mac)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        })?;
        writer.out.get_mut().flush()?;
        Ok(writer)
    }

    /// Writes until the port is closed.
    pub fn run(mut self) {
        loop {
            let closing = self.shared.closing.load(Ordering::Acquire);
            let mut idle = true;
            for index in 0..self.exchanges.len() {
                while let Ok(record) = self.exchanges[index].full.pop() {
                    idle = false;
                    self.take(&record);
                    // There are as many places as records.
                    let _ = self.exchanges[index].empty.push(record);
                }
            }
            if closing {
                break;
            }
            if idle {
                // What was captured is to be seen by those who look at the file while the daemon runs.
                let flushed = self.out.get_mut().flush();
                self.check(flushed);
                thread::park_timeout(PAUSE);
            }
        }
        let finished = self.totals().and_then(|()| self.out.get_mut().flush());
        self.check(finished);
    }

    fn take(&mut self, record: &Record) {
        if self.shared.ended.load(Ordering::Relaxed) {
            self.shared.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let size = record.captured as u64 + BLOCK_BYTES;
        if self.written + size + CLOSING_BYTES > self.limit {
            tracing::info!(path = %self.path.display(), "the capture has reached its size limit");
            self.shared.ended.store(true, Ordering::Relaxed);
            self.shared.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut options = vec![EnhancedPacketOption::Flags(record.direction as u32)];
        if record.missed > 0 {
            options.push(EnhancedPacketOption::DropCount(record.missed));
        }
        let written = self.write(EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(record.time),
            original_len: record.original as u32,
            data: Cow::Borrowed(&record.bytes[..record.captured]),
            options,
        });
        if written.is_ok() {
            self.shared.captured.fetch_add(1, Ordering::Relaxed);
        }
        self.check(written);
    }

    /// The block that says how many frames there were and how many are missing.
    fn totals(&mut self) -> io::Result<()> {
        let (captured, missed) = (
            self.shared.captured.load(Ordering::Relaxed),
            self.shared.missed.load(Ordering::Relaxed),
        );
        let now = wall_clock();
        self.write(InterfaceStatisticsBlock {
            interface_id: 0,
            timestamp: now,
            options: vec![
                InterfaceStatisticsOption::IsbStartTime(self.start),
                InterfaceStatisticsOption::IsbEndTime(now),
                InterfaceStatisticsOption::IsbIfRecv(captured + missed),
                InterfaceStatisticsOption::IsbIfDrop(missed),
            ],
        })
    }

    fn write<'a>(&mut self, block: impl PcapNgBlock<'a>) -> io::Result<()> {
        self.written += self.out.write_pcapng_block(block).map_err(into_io)? as u64;
        Ok(())
    }

    /// Ends the capture at the first error: a file with a hole would be worse than a short one.
    fn check(&self, result: io::Result<()>) {
        if let Err(error) = result
            && !self.shared.ended.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(path = %self.path.display(), %error, "the capture has ended: the file cannot be written");
        }
    }
}

fn into_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
