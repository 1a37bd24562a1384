//! A module's read-only files: a tree that never changes, shared by all its runs.
//!
//! Invariant: every name is a plain path component, every node but the root has its parent before it, and what the tree
//! holds is within its bounds.

use std::sync::Arc;

use bytes::Bytes;

/// Files and folders of a bundle.
pub const MAX_ENTRIES: usize = 10_000;
/// Bytes of a path, and of each name in it.
pub const MAX_PATH: usize = 1_024;
pub const MAX_NAME: usize = 255;
/// Folders above a file.
pub const MAX_DEPTH: usize = 32;
/// A run's own folder, which no bundle may have: see [`super::Files`].
pub const TMP: &str = "tmp";
/// What an entry costs beside its content, in round figures.
const ENTRY_BYTES: u64 = 128;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Assets(pub Arc<Tree>);

#[derive(Debug)]
pub struct Tree {
    /// The root is the first.
    nodes: Vec<Node>,
    bytes: u64,
    files: u64,
}

/// An index into the tree.
pub type NodeId = u32;
pub const ROOT: NodeId = 0;

#[derive(Debug)]
struct Node {
    name: Box<str>,
    parent: NodeId,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File(Bytes),
    /// By name.
    Folder(Vec<NodeId>),
}

/// What a path in a bundle is refused for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    #[error("is not a relative path of plain names")]
    NotPlain,
    #[error("has a path over {MAX_PATH} bytes, a name over {MAX_NAME}, or is more than {MAX_DEPTH} folders deep")]
    TooLong,
    #[error("comes twice")]
    Twice,
    #[error("is below a file")]
    BelowAFile,
    #[error("is the folder that each run has for itself; use another name than `{TMP}`")]
    Tmp,
    #[error("is one more than the {MAX_ENTRIES} files and folders that a bundle may have")]
    TooMany,
}

/// A tree that is being made.
pub struct Builder {
    nodes: Vec<Node>,
    bytes: u64,
    files: u64,
}

impl Default for Builder {
    fn default() -> Self {
        let root = Node { name: "".into(), parent: ROOT, content: Content::Folder(Vec::new()) };
        Builder { nodes: vec![root], bytes: 0, files: 0 }
    }
}

impl Builder {
    /// Content so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn add_folder(&mut self, path: &str) -> Result<(), BadPath> {
        let names = plain(path)?;
        self.folder(&names).map(drop)
    }

    /// Its content comes by [`Builder::fill`].
    pub fn add_file(&mut self, path: &str) -> Result<NodeId, BadPath> {
        let names = plain(path)?;
        let Some((name, folders)) = names.split_last().filter(|_| !path.ends_with('/')) else {
            return Err(BadPath::NotPlain);
        };
        let parent = self.folder(folders)?;
        match self.child(parent, name) {
            Ok(_) => Err(BadPath::Twice),
            Err(at) => self.insert(parent, at, name, Content::File(Bytes::new())),
        }
    }

    pub fn fill(&mut self, file: NodeId, content: Bytes) {
        self.bytes += content.len() as u64;
        self.files += 1;
        if let Some(node) = self.nodes.get_mut(file as usize) {
            node.content = Content::File(content);
        }
    }

    pub fn finish(self) -> Assets {
        let Builder { nodes, bytes, files } = self;
        Assets(Arc::new(Tree { nodes, bytes, files }))
    }

    /// Folders are also made by what is in them, as archives often leave them out.
    fn folder(&mut self, names: &[&str]) -> Result<NodeId, BadPath> {
        let mut at = ROOT;
        for name in names {
            at = match self.child(at, name) {
                Ok(child) if matches!(self.nodes[child as usize].content, Content::Folder(_)) => child,
                Ok(_) => return Err(BadPath::BelowAFile),
                Err(place) => self.insert(at, place, name, Content::Folder(Vec::new()))?,
            };
        }
        Ok(at)
    }

    fn child(&self, folder: NodeId, name: &str) -> Result<NodeId, usize> {
        child(&self.nodes, folder, name)
    }

    fn insert(&mut self, parent: NodeId, at: usize, name: &str, content: Content) -> Result<NodeId, BadPath> {
        // The root is no entry.
        if self.nodes.len() > MAX_ENTRIES {
            return Err(BadPath::TooMany);
        }
        let id = self.nodes.len() as NodeId;
        self.nodes.push(Node { name: name.into(), parent, content });
        if let Content::Folder(children) = &mut self.nodes[parent as usize].content {
            children.insert(at, id);
        }
        Ok(id)
    }
}

/// The names of a path in a bundle. `./` in front, as `tar -c .` writes it, and `/` behind a folder are no names.
fn plain(path: &str) -> Result<Vec<&str>, BadPath> {
    if path.len() > MAX_PATH {
        return Err(BadPath::TooLong);
    }
    let path = path.strip_prefix("./").unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() || path == "." {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = path.split('/').collect();
    if names.iter().any(|name| name.is_empty() || matches!(*name, "." | "..") || name.contains(['\0', '\\'])) {
        return Err(BadPath::NotPlain);
    }
    if names.len() > MAX_DEPTH || names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(BadPath::TooLong);
    }
    if names[0] == TMP {
        return Err(BadPath::Tmp);
    }
    Ok(names)
}

fn child(nodes: &[Node], folder: NodeId, name: &str) -> Result<NodeId, usize> {
    match nodes.get(folder as usize).map(|node| &node.content) {
        Some(Content::Folder(children)) => {
            children.binary_search_by(|child| nodes[*child as usize].name.as_ref().cmp(name)).map(|at| children[at])
        }
        _ => Err(0),
    }
}

impl Tree {
    /// What it takes in memory, in round figures.
    pub fn memory(&self) -> u64 {
        self.bytes + self.nodes.len() as u64 * ENTRY_BYTES
    }
}

impl Assets {
    /// Content of all files together.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    pub fn files(&self) -> u64 {
        self.0.files
    }

    /// Every file by its path from the root, without a `/` in front.
    pub fn iter(&self) -> impl Iterator<Item = (String, Bytes)> {
        let nodes = &self.0.nodes;
        nodes.iter().filter_map(|node| match &node.content {
            Content::File(content) => Some((path(nodes, node), content.clone())),
            Content::Folder(_) => None,
        })
    }

    /// The paths of all folders but the root, each behind the one that it is in.
    pub fn folders(&self) -> impl Iterator<Item = String> {
        let nodes = &self.0.nodes;
        nodes.iter().skip(1).filter(|node| matches!(node.content, Content::Folder(_))).map(|node| path(nodes, node))
    }

    pub fn child(&self, folder: NodeId, name: &str) -> Option<NodeId> {
        child(&self.0.nodes, folder, name).ok()
    }

    pub fn parent(&self, node: NodeId) -> NodeId {
        self.0.nodes.get(node as usize).map_or(ROOT, |node| node.parent)
    }

    /// `None`: a folder.
    pub fn content(&self, node: NodeId) -> Option<&Bytes> {
        match &self.0.nodes.get(node as usize)?.content {
            Content::File(content) => Some(content),
            Content::Folder(_) => None,
        }
    }

    /// The `n`th entry of a folder, by name.
    pub fn entry(&self, folder: NodeId, n: usize) -> Option<(NodeId, &str)> {
        match &self.0.nodes.get(folder as usize)?.content {
            Content::Folder(children) => {
                let child = *children.get(n)?;
                Some((child, &self.0.nodes[child as usize].name))
            }
            Content::File(_) => None,
        }
    }

    /// How many entries a folder has.
    pub fn entries(&self, folder: NodeId) -> usize {
        match self.0.nodes.get(folder as usize).map(|node| &node.content) {
            Some(Content::Folder(children)) => children.len(),
            _ => 0,
        }
    }
}

fn path(nodes: &[Node], node: &Node) -> String {
    let mut names = vec![node.name.as_ref()];
    let mut at = node.parent;
    while at != ROOT {
        names.push(&nodes[at as usize].name);
        at = nodes[at as usize].parent;
    }
    names.reverse();
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_plain() {
        assert_eq!(plain("a/b"), Ok(vec!["a", "b"]));
        assert_eq!(plain("./a/"), Ok(vec!["a"]));
        assert_eq!(plain("./"), Ok(vec![]));
        for bad in ["/a", "a//b", "../a", "a/../b", "a/./b", "a\\b", "a\0b", "//", "a/.."] {
            assert_eq!(plain(bad), Err(BadPath::NotPlain), "{bad:?}");
        }
        assert_eq!(plain("tmp/x"), Err(BadPath::Tmp));
        assert_eq!(plain(&"a/".repeat(33)), Err(BadPath::TooLong));
        assert_eq!(plain(&"a".repeat(256)), Err(BadPath::TooLong));
    }

    #[test]
    fn a_tree_is_found_by_path() {
        let mut tree = Builder::default();
        for (path, content) in [("b/c", "1"), ("a", "2"), ("b/a/x", "3")] {
            let file = tree.add_file(path).unwrap();
            tree.fill(file, content.into());
        }
        tree.add_folder("b").unwrap();
        assert_eq!(tree.add_file("a"), Err(BadPath::Twice));
        assert_eq!(tree.add_file("b"), Err(BadPath::Twice));
        assert_eq!(tree.add_file("a/x"), Err(BadPath::BelowAFile));
        assert_eq!(tree.add_folder("a"), Err(BadPath::BelowAFile));
        let assets = tree.finish();
        let mut all: Vec<_> = assets.iter().map(|(path, content)| format!("{path}={content:?}")).collect();
        all.sort();
        assert_eq!(all, ["a=b\"2\"", "b/a/x=b\"3\"", "b/c=b\"1\""]);
        assert_eq!(assets.folders().collect::<Vec<_>>(), ["b", "b/a"]);
        assert_eq!((assets.bytes(), assets.files()), (3, 3));
        let b = assets.child(ROOT, "b").unwrap();
        let names: Vec<_> = (0..assets.entries(b)).map(|n| assets.entry(b, n).unwrap().1).collect();
        assert_eq!(names, ["a", "c"]);
    }
}
