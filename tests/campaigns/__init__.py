"""Campaigns: the tests at full size, run by `make torture-NAME`, their counts kept in
specs/campaigns/NAME.json.
"""
