//! The guest's kernel and initial file system, made once out of Debian packages.
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::system::run;

/// All that an image depends on beside the packages.
const RECIPE: &str = concat!(
    include_str!("../image.sh"),
    include_str!("../files/init"),
    include_str!("../files/agent"),
    include_str!("../files/peer.c"),
);

/// What QEMU boots.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// The image below `work`; makes it if there is none, or if it is of another recipe than this program's.
    pub fn get(work: &Path) -> Result<Image> {
        let image = Image {
            dir: work.join("image"),
        };
        let recipe = image.dir.join("recipe");
        if std::fs::read_to_string(&recipe).is_ok_and(|made_by| made_by == RECIPE) {
            return Ok(image);
        }
        eprintln!("making the guest's image in {}", image.dir.display());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/image.sh");
        let dir = image.dir.to_str().context("a path in UTF-8")?;
        run("bash", &[script, dir]).context(
            "the guest's image cannot be made; it is built from Debian packages that apt-get must be able to download",
        )?;
        std::fs::write(&recipe, RECIPE).context("writing the image's recipe")?;
        Ok(image)
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initial file system.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// Name of the kernel's package.
    pub fn package(&self) -> String {
        let stamp = std::fs::read_to_string(self.dir.join("package")).unwrap_or_default();
        stamp.trim().into()
    }
}
