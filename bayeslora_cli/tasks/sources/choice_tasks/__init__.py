"""Tasks of multiple choice by name: MMLU, ARC, OpenBookQA, BoolQ, WinoGrande, PIQA, SIQA."""
