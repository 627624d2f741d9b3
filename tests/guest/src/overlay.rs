//! Files of the host in the guest's initial file system: a second archive behind the image's, which the kernel unpacks over
//! it. The archives are of cpio's format "newc".
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::image::Image;

/// Where the guest looks for programs, and for libraries.
const PROGRAMS: &str = "usr/bin";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADERS: &str = "lib64";
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
/// Archives are padded to this.
const ALIGN: usize = 4;

/// What is added.
#[derive(Debug, Default)]
pub struct Overlay {
    archive: Vec<u8>,
    /// What is in it.
    names: BTreeSet<PathBuf>,
}

impl Overlay {
    /// Adds a program of the host, with the shared libraries that it is linked to.
    pub fn program(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().context("a program's name")?;
        self.copy(path, &Path::new(PROGRAMS).join(name))?;
        for library in libraries(path)? {
            self.library(&library)?;
        }
        Ok(())
    }

    /// Adds a shared library, to where the loader finds it.
    fn library(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().context("a library's name")?;
        let loader = name.as_encoded_bytes().starts_with(b"ld-linux");
        let dir = if loader { LOADERS } else { LIBRARIES };
        self.copy(path, &Path::new(dir).join(name))
    }

    /// Adds a file of the host under a name in the guest.
    pub fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let bytes = std::fs::read(from).with_context(|| from.display().to_string())?;
        self.file(to, &bytes)
    }

    /// Adds a file.
    pub fn file(&mut self, name: &Path, bytes: &[u8]) -> Result<()> {
        let name = name.strip_prefix("/").unwrap_or(name);
        let above: Vec<_> = name.ancestors().skip(1).collect();
        for dir in above.into_iter().rev().filter(|dir| *dir != Path::new("")) {
            self.entry(dir, DIRECTORY, &[])?;
        }
        self.entry(name, EXECUTABLE, bytes)
    }

    /// Writes the image's file system with this behind it to a file.
    pub fn write(mut self, image: &Image, to: &Path) -> Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        let failed = || format!("writing {}", to.display());
        let mut file = File::create(to).with_context(failed)?;
        let base = std::fs::read(image.initramfs()).context("reading the image")?;
        file.write_all(&base).with_context(failed)?;
        file.write_all(&[0; ALIGN][..base.len().next_multiple_of(ALIGN) - base.len()])
            .with_context(failed)?;
        file.write_all(&self.archive).with_context(failed)
    }

    fn entry(&mut self, name: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        if !self.names.insert(name.into()) {
            return Ok(());
        }
        let name = name.to_str().context("a name in UTF-8")?;
        let length = u32::try_from(bytes.len()).context("a file of 4 GiB")?;
        // One inode each, so that nothing is taken for a link: inode, mode, uid, gid, links, mtime, length, four numbers of
        // devices, length of the name, checksum.
        let inode = self.names.len() as u32;
        let name_length = name.len() as u32 + 1;
        let fields = [inode, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        self.archive.extend_from_slice(b"070701");
        for field in fields {
            write!(self.archive, "{field:08X}")?;
        }
        self.archive.extend_from_slice(name.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(bytes);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        let length = self.archive.len().next_multiple_of(ALIGN);
        self.archive.resize(length, 0);
    }
}

/// The shared libraries of a program, the loader among them.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("ldd cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !text.contains("not found"),
        "ldd {}: {text}{}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(paths(&text))
}

/// The paths in what ldd prints: `NAME => PATH (ADDRESS)`, or for the loader `PATH (ADDRESS)`.
fn paths(text: &str) -> Vec<PathBuf> {
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_in_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths(text), expected.map(PathBuf::from));
    }

    #[test]
    fn a_file_comes_once_behind_its_folders_and_everything_is_aligned() {
        let mut overlay = Overlay::default();
        for _ in 0..2 {
            overlay.file(Path::new("/etc/a/b"), b"12345").unwrap();
        }
        let text = String::from_utf8(overlay.archive).unwrap();
        let headers: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 3);
        assert!(headers.iter().all(|at| at % ALIGN == 0) && text.len().is_multiple_of(ALIGN));
        assert!(text[headers[2]..].contains("00000005") && text.ends_with("12345\0\0\0"));
    }
}
