//! A module's files, from an archive or a folder.
//!
//! Invariant: the same files make the same bundle, whenever and by whom it is made: a push of them is the same version.

use std::path::Path;

use anyhow::Context as _;

use super::Failure;

/// An archive as it is, or one of what is in a folder.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = if path.is_dir() { archive(path) } else { std::fs::read(path).map_err(Into::into) };
    read.map_err(|e| Failure::usage(format!("`--assets {}`: {e:#}", path.display())))
}

fn archive(folder: &Path) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, folder, "")?;
    Ok(archive.into_inner()?)
}

fn add(archive: &mut tar::Builder<Vec<u8>>, folder: &Path, prefix: &str) -> anyhow::Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_str().with_context(|| format!("`{}` is not UTF-8", name.display()))?;
        let path = format!("{prefix}{name}");
        // Of links, what they lead to would be a surprise in a bundle.
        let kind = entry.file_type()?;
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            add(archive, &entry.path(), &format!("{path}/"))?;
        } else if kind.is_file() {
            let content = std::fs::read(entry.path()).with_context(|| format!("`{path}`"))?;
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, &path, content.as_slice())?;
        } else {
            anyhow::bail!("`{path}` is no plain file or folder");
        }
    }
    Ok(())
}
