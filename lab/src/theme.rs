//! The colours of all pictures, in light and dark: those of the page.

/// The CSS of an SVG file with these colours.
pub(crate) const THEME: &str = "
svg { --ground: #f6f6f2; --ink: #1b2330; --soft: #566072; --line: #c3c8d1; --out: #dfe2e8;
      --once: #14785f; --late: #e3a43a; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  svg { --ground: #10141b; --ink: #e8ecf3; --soft: #9aa6b8; --line: #46526a; --out: #2a3242;
        --once: #2f9f82; --late: #f2b13c; --bad: #ff7a6a; }
}
";
