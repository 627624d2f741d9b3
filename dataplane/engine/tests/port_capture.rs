//! Captures, read back by tshark where it is installed and by the format's own rules everywhere.
use std::{fs, path::Path, process::Command};

use pcap_file::pcapng::{
    Block, PcapNgReader,
    blocks::{
        enhanced_packet::EnhancedPacketOption, interface_description::InterfaceDescriptionOption,
        interface_statistics::InterfaceStatisticsOption,
    },
};
use rnic_engine::{
    frame::{BURST, FrameBurst},
    nonblocking::{CheckedAllocator, NonBlocking},
    port::{CaptureSpec, DeviceSpec, FaultRates, FaultSpec, OpenPort, PortSpec, counted, open_all},
};

mod port_common;
use port_common::{burst, close, counter, exchange, pattern, until};

/// Aborts when the poll path allocates.
#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const LONGEST: usize = 1514;

/// A pair of ports, the first of which writes to `path`.
fn captured(path: &Path, limit_bytes: u64, queues: u16) -> (OpenPort, OpenPort) {
    let end = |name: &str, peer: &str| PortSpec {
        queues,
        ..PortSpec::new(
            name,
            DeviceSpec::SoftRing {
                peer: peer.to_owned(),
            },
            1500,
        )
    };
    let capture = CaptureSpec {
        path: path.to_owned(),
        limit_bytes,
    };
    let a = PortSpec {
        capture: Some(capture),
        ..end("rnic0", "rnic1")
    };
    let mut ports = open_all(&[a, end("rnic1", "rnic0")], &[]).expect("rings open");
    let b = ports.remove(1);
    (ports.remove(0), b)
}

/// What a capture says.
#[derive(Default)]
struct Content {
    name: String,
    /// Direction (1 in, 2 out), nanoseconds since 1970, bytes.
    frames: Vec<(u32, u128, Vec<u8>)>,
    /// Frames missed, as told by those that follow them.
    missed: u64,
    /// Frames seen and frames missed, of the block at the end.
    totals: Option<(u64, u64)>,
}

fn read(path: &Path) -> Content {
    let mut content = Content::default();
    let mut reader =
        PcapNgReader::new(fs::File::open(path).expect("the file is there")).expect("a section header");
    while let Some(block) = reader.next_block() {
        match block.expect("a whole block") {
            Block::InterfaceDescription(interface) => {
                for option in interface.options {
                    match option {
                        InterfaceDescriptionOption::IfName(name) => content.name = name.into_owned(),
                        InterfaceDescriptionOption::IfTsResol(digits) => assert_eq!(digits, 9),
                        _ => {}
                    }
                }
            }
            Block::EnhancedPacket(packet) => {
                let mut direction = 0;
                for option in &packet.options {
                    match option {
                        EnhancedPacketOption::Flags(flags) => direction = *flags,
                        EnhancedPacketOption::DropCount(missed) => content.missed += missed,
                        _ => {}
                    }
                }
                assert_eq!(packet.original_len as usize, packet.data.len());
                content
                    .frames
                    .push((direction, packet.timestamp.as_nanos(), packet.data.into_owned()));
            }
            Block::InterfaceStatistics(statistics) => {
                let (mut seen, mut dropped) = (0, 0);
                for option in &statistics.options {
                    match option {
                        InterfaceStatisticsOption::IsbIfRecv(n) => seen = *n,
                        InterfaceStatisticsOption::IsbIfDrop(n) => dropped = *n,
                        _ => {}
                    }
                }
                content.totals = Some((seen, dropped));
            }
            other => panic!("{other:?}"),
        }
    }
    content
}

#[test]
fn both_directions_are_in_the_file_byte_exact_in_order_and_flagged() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("frames.pcapng");
    let (mut a, mut b) = captured(&path, 64 << 20, 1);
    exchange(&mut *a.queues[0], &mut *b.queues[0], 300, LONGEST);
    exchange(&mut *b.queues[0], &mut *a.queues[0], 200, LONGEST);
    assert_eq!(counter(&a, "capture_missed"), 0);
    close([a, b]);

    let content = read(&path);
    assert_eq!(
        (content.name.as_str(), content.missed, content.totals),
        ("rnic0", 0, Some((500, 0)))
    );
    assert_eq!(content.frames.len(), 500);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let mut last = now.as_nanos() - 3_600_000_000_000;
    for (i, (direction, time, bytes)) in content.frames.iter().enumerate() {
        let (expected, number) = if i < 300 { (2, i) } else { (1, i - 300) };
        assert_eq!(*direction, expected, "frame {i}");
        assert_eq!(*bytes, pattern(number, LONGEST), "frame {i}");
        assert!(*time >= last && *time <= now.as_nanos());
        last = *time;
    }
    tshark(&path, 500);
}

/// Has tshark read the file, if it is installed.
fn tshark(path: &Path, frames: usize) {
    let fields = [
        "-T",
        "fields",
        "-e",
        "frame.number",
        "-e",
        "frame.interface_name",
        "-e",
        "frame.packet_flags_direction",
    ];
    let Ok(output) = Command::new("tshark").arg("-r").arg(path).args(fields).output() else {
        eprintln!("tshark is not installed; the file was read by the format's rules alone");
        return;
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), frames);
    assert!(text.lines().all(|line| line.contains("rnic0")), "{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !errors.contains("cut short") && !errors.contains("damaged"),
        "{errors}"
    );
}

#[test]
fn frames_that_were_not_accepted_are_not_in_the_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("frames.pcapng");
    let (mut a, b) = captured(&path, 64 << 20, 1);
    let pool = a.pool.clone();
    let mut accepted = 0;
    loop {
        let n = a.queues[0].tx_burst(&mut burst(&*pool, BURST, accepted, 100));
        accepted += n;
        if n == 0 {
            break;
        }
        // The writer keeps up, so that nothing is missed for other reasons.
        until("the writer has written them", || {
            counter(&a, "capture_frames") == accepted as u64
        });
    }
    drop(pool);
    close([a, b]);
    let content = read(&path);
    assert_eq!(content.frames.len(), accepted);
    assert!(
        content
            .frames
            .iter()
            .enumerate()
            .all(|(i, frame)| frame.2 == pattern(i, 100))
    );
}

#[test]
fn the_file_stops_at_its_limit_and_says_how_much_is_missing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("frames.pcapng");
    let limit = 64 << 10;
    let (mut a, mut b) = captured(&path, limit, 1);
    exchange(&mut *a.queues[0], &mut *b.queues[0], 400, LONGEST);
    close([a, b]);
    let size = fs::metadata(&path).expect("the file is there").len();
    assert!(size <= limit && size > limit - 2000, "{size}");
    let content = read(&path);
    let (seen, missed) = content.totals.expect("there is room for the totals");
    assert_eq!(content.frames.len() as u64 + missed, seen);
    assert!(missed > 0);
    tshark(&path, content.frames.len());
}

#[test]
fn a_poll_core_neither_waits_for_the_writer_nor_allocates_and_what_is_missed_is_counted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("frames.pcapng");
    let (mut a, mut b) = captured(&path, 1 << 30, 1);
    let rounds = 2000;
    let section = NonBlocking::enter();
    for _ in 0..rounds {
        let mut frames = FrameBurst::new();
        a.pool.alloc_burst(BURST, &mut frames);
        for frame in &mut frames {
            frame.set_len(64);
        }
        a.queues[0].tx_burst(&mut frames);
        b.queues[0].rx_burst(&mut frames);
    }
    drop(section);
    close([a, b]);
    let content = read(&path);
    let (seen, missed) = content.totals.expect("the file was closed");
    assert_eq!(seen, rounds * BURST as u64);
    assert_eq!(content.frames.len() as u64, seen - missed);
    assert!(
        content.missed <= missed,
        "what is missed at the very end, no frame tells of"
    );
}

#[test]
fn queues_share_one_file_and_faults_show_as_they_are_on_the_link() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("frames.pcapng");
    let drop_ppm = 1_000_000;
    let faults = FaultSpec {
        rx: FaultRates {
            drop_ppm,
            ..FaultRates::default()
        },
        ..FaultSpec::default()
    };
    let spec = |name: &str, peer: &str, capture, faults| PortSpec {
        queues: 2,
        capture,
        faults,
        ..PortSpec::new(
            name,
            DeviceSpec::SoftRing {
                peer: peer.to_owned(),
            },
            1500,
        )
    };
    let capture = CaptureSpec {
        path: path.clone(),
        limit_bytes: 1 << 20,
    };
    let specs = [
        spec("rnic0", "rnic1", Some(capture), Some(faults)),
        spec("rnic1", "rnic0", None, None),
    ];
    let mut ports = open_all(&specs, &[]).expect("rings open");
    let mut a = counted(ports.remove(0));
    let mut b = ports.remove(0);
    for queue in 0..2 {
        a.queues[queue].tx_burst(&mut burst(&*a.pool.clone(), 3, 0, LONGEST));
        b.queues[queue].tx_burst(&mut burst(&*b.pool.clone(), 4, 0, LONGEST));
        assert_eq!(
            a.queues[queue].rx_burst(&mut FrameBurst::new()),
            0,
            "all are dropped"
        );
    }
    assert_eq!(
        (counter(&a, "tx_bursts_of_2_to_3"), counter(&a, "rx_bursts_of_0")),
        (2, 2)
    );
    assert_eq!(counter(&a, "fault_rx_dropped"), 8);
    close([a, b]);
    let directions = read(&path).frames.iter().fold([0; 3], |mut count, frame| {
        count[frame.0 as usize] += 1;
        count
    });
    assert_eq!(
        directions,
        [0, 8, 6],
        "received frames are captured before the faults"
    );
}
