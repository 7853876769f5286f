"""What tests share: one module for each subject, and in programs/ what they start as processes of their own."""
