//! The commented samples of `deploy/samples`, as they stand in the source tree.

/// A sample configuration.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Its name, as `rnicd --print-sample` takes it.
    pub name: &'static str,
    /// What it is for, in one line.
    pub purpose: &'static str,
    /// The file.
    pub text: &'static str,
}

/// All samples.
pub const ALL: [Sample; 3] = [
    Sample {
        name: "laptop",
        purpose: "two ports wired back to back; no NIC, no hugepages, no root",
        text: include_str!("../../deploy/samples/laptop.yaml"),
    },
    Sample {
        name: "bare-metal",
        purpose: "a whole PCI port with hugepages and four poll cores",
        text: include_str!("../../deploy/samples/bare-metal.yaml"),
    },
    Sample {
        name: "sriov-vf",
        purpose: "an SR-IOV virtual function with hugepages",
        text: include_str!("../../deploy/samples/sriov-vf.yaml"),
    },
];

/// The text of the sample called `name`.
pub fn get(name: &str) -> Option<&'static str> {
    ALL.iter()
        .find(|sample| sample.name == name)
        .map(|sample| sample.text)
}
